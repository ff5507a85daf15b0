"""Attention to clusters of tokens, at several scales (ClusTR)."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anchorformer_mm.models.argument_checks import check_positive
from anchorformer_mm.models.layers.base_attention import BaseAttention
from anchorformer_mm.models.layers.token_clustering import (
    dpc_knn,
    merge_tokens,
)
from anchorformer_mm.models.layers.token_windows import TokenWindows, ceil_div


class ClusterAttention(BaseAttention):
    r"""Every token attends to clusters of all tokens (arXiv 2208.13138).

    The tokens are clustered by content once, for all heads, by
    :func:`dpc_knn`; at scale s there are :math:`s M` clusters, merged by
    learned importance to :math:`Y_s` (:func:`merge_tokens`). With keys and
    values of each scale's own, the scales are summed before the output
    projection:

    .. math:: O = W_O \sum_s softmax(Q K_s^\top / \sqrt d) V_s, \quad
              (K_s, V_s) = Y_s W_s

    A map of more than ``window_size``² tokens is clustered window by window,
    each with its share of the clusters: memory is then linear in the tokens.
    The attention stays global.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h; must divide ``embed_dims``.
        sr_ratio: A map of n tokens has M = n // ``sr_ratio``² clusters at
            scale 1, one at least.
        num_clusters: M as a fixed number, in place of ``sr_ratio``; never
            more than there are tokens.
        scales: Clusters over M, rising; without ``num_clusters`` each must
            divide ``sr_ratio``². As many clusters as tokens means that each
            token is one, without any clustering.
        k: Neighbours that make the density of a token; maps with fewer
            tokens take all.
        window_size: Side of the largest square map that is clustered as a
            whole, tokens.
        qkv_bias: Whether the projections to Q, K and V have a bias.
        attn_drop: Dropout on the attention weights, in [0, 1).
        proj_drop: Dropout on the output, in [0, 1).

    Raises:
        ValueError: An argument is out of its range; or, in :meth:`forward`,
            ``hw_shape`` is missing for a map that needs windows, or is not
            that of the tokens.

    Shape:
        - Input: (B, n, D), n >= 1; output: (B, n, D).
    """

    input_projection = ('q', 1)

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        *,
        sr_ratio: int = 8,
        num_clusters: int | None = None,
        scales: Sequence[int] = (1, 4),
        k: int = 5,
        window_size: int = 56,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            embed_dims,
            num_heads,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
        )
        check_positive(sr_ratio=sr_ratio, k=k, window_size=window_size)
        if num_clusters is not None:
            check_positive(num_clusters=num_clusters)
        self.sr_ratio = sr_ratio
        self.num_clusters = num_clusters
        self.scales = _rising(scales)
        if num_clusters is None and any(
            sr_ratio**2 % scale for scale in self.scales
        ):
            raise ValueError(
                f'scales must divide sr_ratio**2 = {sr_ratio**2}, got '
                f'{scales!r}'
            )
        self.k = k
        self.window_size = window_size
        self.importance = nn.Linear(embed_dims, 1)
        self.kv = nn.ModuleList(
            nn.Linear(embed_dims, 2 * embed_dims, bias=qkv_bias)
            for _ in self.scales
        )

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        q = self.split_heads(self.q(x))
        logits = self.importance(x)[..., 0]
        out = torch.zeros_like(q)
        for project, clusters in zip(
            self.kv, self.cluster(x, hw_shape), strict=True
        ):
            merged, mask = x, None
            if clusters is not None:
                merged, filled = merge_tokens(x, logits, *clusters)
                windows = self._windows(x.shape[1], hw_shape)
                # Only padding leaves a cluster empty; without a mask torch
                # has faster kernels to choose from.
                if windows is not None and windows.overhang != (0, 0):
                    mask = filled[:, None, None]
            k, v = project(merged).chunk(2, dim=-1)
            out = out + F.scaled_dot_product_attention(
                q,
                self.split_heads(k),
                self.split_heads(v),
                attn_mask=mask,
                dropout_p=self.attn_drop.p if self.training else 0.0,
            )
        return self.project(out, x, hw_shape)

    def cluster(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> tuple[tuple[Tensor, int] | None, ...]:
        """Cluster the tokens at every scale.

        Args:
            x: Tokens, shape (B, n, D).
            hw_shape: Height and width of the map of the tokens; only maps
                that need windows need it.

        Returns:
            tuple: For each scale the cluster of each token, int64, shape
            (B, n), and the number of clusters, some of which may be empty;
            or None where each token is a cluster of its own.

        Raises:
            ValueError: As for :meth:`forward`.
        """
        n = x.shape[1]
        if hw_shape is not None and prod(hw_shape) != n:
            raise ValueError(
                f'hw_shape must be that of a map of {n} tokens, got '
                f'{tuple(hw_shape)}'
            )
        base = self.num_clusters or max(1, n // self.sr_ratio**2)
        counts = [base * scale for scale in self.scales]
        coarse = [count for count in counts if count < n]
        found = iter(self._cluster(x, hw_shape, coarse) if coarse else ())
        return tuple(next(found) if c < n else None for c in counts)

    def _windows(
        self, n: int, hw_shape: tuple[int, int] | None
    ) -> TokenWindows | None:
        """Windows of a map of n tokens, None if it is clustered as a whole."""
        if n <= self.window_size**2:
            return None
        if hw_shape is None:
            raise ValueError(
                f'more than window_size**2 = {self.window_size**2} tokens '
                f'need the (height, width) of their map, got {n} tokens and '
                'hw_shape=None'
            )
        return TokenWindows.cover(hw_shape, self.window_size)

    def _cluster(
        self,
        x: Tensor,
        hw_shape: tuple[int, int] | None,
        counts: Sequence[int],
    ) -> list[tuple[Tensor, int]]:
        """Cluster as a whole, or window by window."""
        windows = self._windows(x.shape[1], hw_shape)
        if windows is None:
            found = dpc_knn(x, counts, self.k)
            return list(zip(found, counts, strict=True))
        shares = [
            min(ceil_div(count, len(windows)), prod(windows.size))
            for count in counts
        ]
        found = dpc_knn(windows.split(x), shares, self.k, windows.valid(x))
        window = torch.arange(len(windows), device=x.device)
        window = window.repeat(x.shape[0])[:, None]
        return [
            (
                windows.join((ids + window * share)[..., None])[..., 0],
                len(windows) * share,
            )
            for ids, share in zip(found, shares, strict=True)
        ]


def _rising(scales: Sequence[int]) -> tuple[int, ...]:
    if (
        not isinstance(scales, Sequence)
        or not scales
        or not all(type(scale) is int and scale >= 1 for scale in scales)
        or list(scales) != sorted(set(scales))
    ):
        raise ValueError(f'scales must be rising ints >= 1, got {scales!r}')
    return tuple(scales)
