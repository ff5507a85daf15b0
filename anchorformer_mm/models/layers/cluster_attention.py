"""Attention to clusters of tokens, at several scales (ClusTR).

Density peaks are those of Rodriguez and Laio (2014) with the k nearest
neighbours of Du et al. (2016), brought to tokens by TCFormer (arXiv
2204.08680) and used by ClusTR (arXiv 2208.13138). Where the releases break
ties by random noise, also in evaluation, here the lower index wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anchorformer_mm.models.argument_checks import check_positive, rising
from anchorformer_mm.models.layers.attention import BaseAttention

# Distances of as many pairs at once; fp32 takes 4 bytes for each.
_MAX_PAIRS = 2**25


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
        drops = dict(attn_drop=attn_drop, proj_drop=proj_drop)
        super().__init__(embed_dims, num_heads, qkv_bias=qkv_bias, **drops)
        check_positive(sr_ratio=sr_ratio, k=k, window_size=window_size)
        if num_clusters is not None:
            check_positive(num_clusters=num_clusters)
        self.sr_ratio = sr_ratio
        self.num_clusters = num_clusters
        self.scales = rising('scales', scales, 1)
        pixels = sr_ratio**2
        if num_clusters is None and any(pixels % s for s in self.scales):
            raise ValueError(
                f'scales must divide sr_ratio**2 = {pixels}, got {scales!r}'
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
        scales = self.cluster(x, hw_shape)
        out = torch.zeros_like(q)
        if self.training and not any(scales):
            # Nothing merges. Distributed training stops where a weight gets
            # no gradient, not where it gets zeros.
            out = 0 * logits[:, None, :, None]
        for project, clusters in zip(self.kv, scales, strict=True):
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
        """Cluster the tokens (B, n, D) of a map at every scale.

        For each scale this is the cluster of each token (B, n) and the number
        of clusters, or None where each token is a cluster of its own.
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
    ) -> 'TokenWindows | None':
        """Cover a map of n tokens; None if it is clustered as a whole."""
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


@torch.no_grad()
def dpc_knn(
    x: Tensor,
    num_clusters: Sequence[int],
    k: int = 5,
    valid: Tensor | None = None,
) -> tuple[Tensor, ...]:
    r"""Cluster the tokens of each image into several numbers of clusters.

    With :math:`d_{ij} = \|x_i - x_j\| / \sqrt D`:

    - density :math:`\rho_i = \exp(-\frac1k \sum d_{ij}^2)` over the k
      nearest tokens, the token itself among them;
    - separation :math:`\delta_i = \min_{j: \rho_j > \rho_i} d_{ij}`, for the
      densest token the largest of all distances;
    - centres are the tokens of largest :math:`\rho_i \delta_i`; every other
      token belongs to the nearest centre.

    Equal densities, scores and distances: the lower index comes first. The
    work is done in fp32 at least: bf16 knows few densities near 1. The centres
    of fewer clusters are among those of more. No gradient passes.

    Args:
        x: Tokens, shape (B, n, D).
        num_clusters: Numbers of clusters, each at least 1; those above n mean
            n.
        k: Neighbours that make the density, at least 1; n at most are taken.
        valid: Which tokens count, bool, shape (B, n); by default all. The
            others, whatever they hold, are no one's neighbour and become
            centres only where the valid ones are too few; what they are
            assigned to means nothing.

    Returns:
        tuple[Tensor, ...]: For each number M the cluster of each token,
        int64, shape (B, n), from 0 to M - 1 in the order of the centres'
        indices.
    """
    x = at_least_fp32(x)
    rows = (x,) if valid is None else (x, valid)
    batch, n = x.shape[:2]
    exporting = torch.onnx.is_in_onnx_export()
    step = batch if exporting else max(1, _MAX_PAIRS // (n * n))
    with torch.autocast(x.device.type, enabled=False):
        if batch <= step:
            return _cluster(*rows, num_clusters=num_clusters, k=k)
        parts = [
            _cluster(*part, num_clusters=num_clusters, k=k)
            for part in zip(*(r.split(step) for r in rows), strict=True)
        ]
    return tuple(torch.cat(ids) for ids in zip(*parts, strict=True))


def _cluster(
    x: Tensor,
    valid: Tensor | None = None,
    *,
    num_clusters: Sequence[int],
    k: int,
) -> tuple[Tensor, ...]:
    n = x.shape[1]
    distance = _squared_distances(x, valid)
    order = _centres_first(distance, min(k, n), valid)
    return tuple(
        _assign(distance, order[:, : min(m, n)].sort(dim=1).values)
        for m in num_clusters
    )


def _squared_distances(x: Tensor, valid: Tensor | None) -> Tensor:
    """Squared distances over D, (B, n, n); infinite to invalid tokens."""
    count = x.shape[1]
    if valid is not None:
        # Not a product with zeros: padding may hold NaN.
        x = x.masked_fill(~valid[..., None], 0)
        count = valid.sum(1)[:, None, None].clamp(min=1)
    # Around the mean less is lost in the difference of large numbers; norms
    # off the diagonal of the same product make equal tokens lie at zero (or
    # a rounding away, where a product of few rows sums in several orders).
    x = (x - x.sum(1, keepdim=True) / count) * x.shape[2] ** -0.5
    # In place: a map of 3,136 tokens has 10 million pairs.
    distance = (-2 * x) @ x.transpose(1, 2)
    norm = distance.diagonal(dim1=1, dim2=2) / -2
    distance += norm[:, :, None]
    distance += norm[:, None]
    distance.clamp_(min=0)
    if valid is not None:
        both = valid[:, :, None] & valid[:, None]
        distance.masked_fill_(~both, torch.inf)
    return distance


def _centres_first(distance: Tensor, k: int, valid: Tensor | None) -> Tensor:
    """Tokens by falling density times separation, int64, (B, n)."""
    near = distance.topk(k, dim=2, largest=False).values
    if valid is None:
        # The order of densities is that of their logarithms, which do not
        # underflow.
        log_density = -near.mean(dim=2)
        largest = distance.amax(dim=(1, 2))
    else:
        finite = near.isfinite()
        log_density = -near.where(finite, 0).sum(2) / finite.sum(2).clamp(1)
        log_density = log_density.masked_fill(~valid, -torch.inf)
        largest = distance.where(distance.isfinite(), 0).amax(dim=(1, 2))
    # The rank of a token tells at once who is denser, ties included.
    rank = _falling(_falling(log_density), descending=False)
    not_denser = rank[:, None] >= rank[:, :, None]
    separation = distance.masked_fill(not_denser, torch.inf).amin(dim=2)
    separation = separation.where(rank > 0, largest[:, None])
    score = log_density + separation.log() / 2
    if valid is not None:
        # Duplicates have a score of -inf too, and go before what is invalid.
        score = score.clamp(min=torch.finfo(score.dtype).min)
        score = score.masked_fill(~valid, -torch.inf)
    return _falling(score)


def _falling(values: Tensor, *, descending: bool = True) -> Tensor:
    """Indices that sort the last axis; of equal values the first is first."""
    if torch.onnx.is_in_onnx_export():
        # ONNX has no stable sort, but its TopK prefers the lower index.
        return values.topk(values.shape[-1], largest=descending).indices
    return values.sort(descending=descending, stable=True).indices


def _assign(distance: Tensor, centres: Tensor) -> Tensor:
    """Nearest of the centres (B, M) to each token, int64, (B, n)."""
    b, n = distance.shape[:2]
    m = centres.shape[1]
    to_centres = distance.gather(1, centres[..., None].expand(b, m, n))
    nearest = to_centres.argmin(dim=1)
    # Where two equal tokens are both centres, each keeps its own cluster.
    own = torch.arange(m, device=centres.device).expand(b, m)
    return nearest.scatter(1, centres, own)


def merge_tokens(
    x: Tensor,
    logits: Tensor,
    assignment: Tensor,
    num_clusters: int,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Average the tokens of each cluster by importance.

    :math:`y_c = \sum_{i \in c} p_i x_i / \sum_{i \in c} p_i` with
    :math:`p_i = e^{s_i}`, computed in fp32 at least, for any s: within a
    cluster the weights are a softmax.

    Args:
        x: Tokens, shape (B, n, D).
        logits: Logarithm s of the importance, shape (B, n).
        assignment: Cluster of each token, int64, shape (B, n).
        num_clusters: Clusters M.
        valid: Which tokens count, bool, shape (B, n); by default all. The
            others may hold anything.

    Returns:
        tuple[Tensor, Tensor]: The merged tokens, shape (B, M, D), zero for an
        empty cluster, and which clusters have a token, bool, shape (B, M).
    """
    batch, _, channels = x.shape
    first = torch.arange(batch, device=x.device)[:, None] * num_clusters
    rows = (first + assignment).flatten()
    with torch.autocast(x.device.type, enabled=False):
        s = at_least_fp32(logits)
        if valid is not None:
            s = s.masked_fill(~valid, -torch.inf)
            x = x.masked_fill(~valid[..., None], 0)
        s = s.flatten()
        peak = s.new_full((batch * num_clusters,), -torch.inf)
        peak = peak.scatter_reduce(0, rows, s.detach(), 'amax')
        filled = peak.isfinite()
        peak = peak.where(filled, 0)
        p = (s - peak[rows]).exp()
        total = p.new_zeros(batch * num_clusters).scatter_add(0, rows, p)
        p = p / total.where(filled, 1)[rows]
        weighted = at_least_fp32(x).flatten(0, 1) * p[:, None]
        merged = weighted.new_zeros(batch * num_clusters, channels)
        index = rows[:, None].expand(-1, channels)
        merged = merged.scatter_add(0, index, weighted)
    shape = (batch, num_clusters)
    return merged.to(x.dtype).unflatten(0, shape), filled.unflatten(0, shape)


def at_least_fp32(x: Tensor) -> Tensor:
    """Raise half precision to fp32 and leave the rest."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@dataclass(frozen=True)
class TokenWindows:
    """Equal windows that cover a map; the last ones may reach beyond it."""

    hw_shape: tuple[int, int]  # height H and width W of the map, tokens
    counts: tuple[int, int]  # windows in height and in width
    size: tuple[int, int]  # height and width of a window, tokens

    @classmethod
    def cover(cls, hw_shape: tuple[int, int], side: int) -> 'TokenWindows':
        """Take as few windows as have no side above ``side`` tokens."""
        counts = tuple(ceil_div(length, side) for length in hw_shape)
        size = tuple(map(ceil_div, hw_shape, counts))
        return cls(tuple(hw_shape), counts, size)

    def __len__(self) -> int:
        return self.counts[0] * self.counts[1]

    def split(self, x: Tensor) -> Tensor:
        """(B, H W, C) -> (B windows, tokens of a window, C), zeros beyond."""
        batch, _, channels = x.shape
        down, across = self.overhang
        x = x.unflatten(1, self.hw_shape)
        x = F.pad(x, (0, 0, 0, across, 0, down))
        (rows, columns), (height, width) = self.counts, self.size
        x = x.reshape(batch, rows, height, columns, width, channels)
        return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def join(self, x: Tensor) -> Tensor:
        """(B windows, tokens of a window, C) -> (B, H W, C)."""
        x = x.unflatten(0, (-1, *self.counts)).unflatten(3, self.size)
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x[:, : self.hw_shape[0], : self.hw_shape[1]].flatten(1, 2)

    def valid(self, x: Tensor) -> Tensor | None:
        """Mark tokens (B windows, tokens) of the map; None if all are."""
        if self.overhang == (0, 0):
            return None
        ones = torch.ones_like(x[:, :, :1], dtype=torch.uint8)
        return self.split(ones)[..., 0].bool()

    @property
    def overhang(self) -> tuple[int, int]:
        """Rows and columns of the windows that the map does not have."""
        sizes = zip(self.counts, self.size, self.hw_shape, strict=True)
        return tuple(n * side - length for n, side, length in sizes)


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up, of positive numbers."""
    # Not -(-a // b): ONNX divides integers towards zero.
    return (a + b - 1) // b
