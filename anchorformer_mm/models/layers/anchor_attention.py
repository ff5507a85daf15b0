"""Anchor attention: tokens attend to each other through m anchors.

AnchorFormer (arXiv 2505.16463), equations 4 and 6 to 13 and figure 3.
Notation: n tokens, m anchors, h heads of d channels, D = h * d.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from anchorformer_mm.models.layers.base_attention import (
    BaseAttention,
    check_positive,
)


def anchor_aggregate(
    logits: Tensor,
    v: Tensor,
    read_drop: Callable[[Tensor], Tensor] | None = None,
    read_index: Tensor | None = None,
) -> Tensor:
    r"""One step of the Markov chain token -> anchor -> token (eq. 4, 6-12).

    With A = softmax over anchors of the logits and
    :math:`\Delta = diag(\sum_i A_{ij})`, it computes
    :math:`H = A (\Delta^{-1} (A^\top V))` from right to left: O(n m d) time,
    O(n m) memory, and no n x n matrix.

    It is evaluated in the log domain. With L = log A, the product
    :math:`\Delta^{-1} A^\top` is the softmax of L over the **tokens**, so
    nothing is divided, and result and gradient are finite for every finite
    logit, also where an anchor collects no mass or all of it. The softmaxes
    run in fp32 (fp64 for fp64 input), whatever dtype the products use.

    Args:
        logits: Pivotal similarities, scaled, shape (..., n, m).
        v: Values, shape (..., n, d).
        read_drop: Applied to A where the anchors are read out (dropout).
        read_index: Tokens that read the anchors out, shape (r,), integer:
            these rows of H, in this order. The anchors gather from all
            tokens regardless. By default every token reads.

    Returns:
        Tensor: Mixed values, shape (..., n or r, d), dtype of ``v``.
    """
    log_a = logits.to(_softmax_dtype(logits)).log_softmax(dim=-1)
    gather = log_a.softmax(dim=-2).to(v.dtype)
    if read_index is not None:
        log_a = log_a.index_select(-2, read_index)
    scatter = log_a.exp().to(v.dtype)
    if read_drop is not None:
        scatter = read_drop(scatter)
    return scatter @ (gather.transpose(-2, -1) @ v)


def _softmax_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class BaseAnchorAttention(BaseAttention):
    """What the two ways to obtain anchors share.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h; must divide ``embed_dims``.
        num_anchors: Anchors m, >= 1. May exceed the number of tokens.
        **kwargs: ``dwc_v``, ``qkv_bias``, ``attn_drop`` (on A where anchors
            are read out), ``proj_drop``, see :class:`BaseAttention`.

    Raises:
        ValueError: An argument is out of its range.
    """

    input_projection = ('kv', 2)

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_anchors: int = 30,
        **kwargs,
    ) -> None:
        super().__init__(embed_dims, num_heads, **kwargs)
        check_positive(num_anchors=num_anchors)
        self.num_anchors = num_anchors

    @abstractmethod
    def anchors_of(self, x: Tensor) -> Tensor:
        """Anchors U for tokens ``x`` (B, n, D).

        Returns:
            Tensor: Shape (1 or B, 1 or h, m, d).
        """

    def logits_of(self, x: Tensor, k: Tensor) -> Tensor:
        r"""Pivotal similarities :math:`k_i \cdot u_j / \sqrt d` (eq. 4).

        Scaling the anchors rather than the product keeps the intermediate
        result within fp16 wherever the result is.

        Args:
            x: Tokens, shape (B, n, D).
            k: Keys, shape (B, h, n, d).

        Returns:
            Tensor: Shape (B, h, n, m).
        """
        return k @ (self.anchors_of(x) * self.scale).transpose(-2, -1)

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        """Mix the tokens through the anchors.

        Args:
            x: Tokens, shape (B, n, D), n >= 1.
            hw_shape: Height and width of the map whose tokens are the last
                of ``x``; only ``dwc_v`` needs it.

        Returns:
            Tensor: Shape (B, n, D).
        """
        k, v = self.kv(x).chunk(2, dim=-1)
        out = anchor_aggregate(
            self.logits_of(x, self.split_heads(k)),
            self.split_heads(v),
            read_drop=self.attn_drop,
        )
        return self.project(out, v, hw_shape)


class AnchorAttention(BaseAnchorAttention):
    r"""Anchor attention with learned anchors (eq. 13, figure 3b).

    The anchors are weights; there is no query projection at all. A token costs
    :math:`3 D^2 + 3 m D` multiply-accumulates: linear in their number.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h; must divide ``embed_dims``.
        num_anchors: Anchors m, >= 1. May exceed the number of tokens.
        share_anchors: One d x m matrix for all heads, as in the authors'
            release (default), or one for each head, as the text has it.
        anchor_std: Standard deviation of the anchors at initialisation. With
            the release's 0.02 every token starts equally near to all
            anchors, that is, the layer starts as global average pooling; 1.0
            starts with distinct anchors.
        **kwargs: ``dwc_v``, ``qkv_bias``, ``attn_drop``, ``proj_drop``, see
            :class:`BaseAnchorAttention`.

    Shape:
        - Input: (B, n, D); output: (B, n, D).

    Example:
        >>> attn = AnchorAttention(embed_dims=192, num_heads=3)
        >>> attn(torch.rand(2, 196, 192)).shape
        torch.Size([2, 196, 192])
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_anchors: int = 30,
        *,
        share_anchors: bool = True,
        anchor_std: float = 0.02,
        **kwargs,
    ) -> None:
        super().__init__(embed_dims, num_heads, num_anchors, **kwargs)
        if not anchor_std > 0:
            raise ValueError(f'anchor_std must be > 0, got {anchor_std!r}')
        self.share_anchors = share_anchors
        self.anchor_std = anchor_std
        self.anchors = nn.Parameter(
            torch.empty(
                1 if share_anchors else num_heads,
                num_anchors,
                embed_dims // num_heads,
            )
        )
        self.reset_anchors()

    def reset_anchors(self) -> None:
        """Draw the anchors anew from a truncated normal distribution."""
        std = self.anchor_std
        nn.init.trunc_normal_(self.anchors, std=std, a=-2 * std, b=2 * std)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Fit the anchors of a checkpoint, or refuse them.

        Anchors shared by all heads are repeated where each head has its own:
        the function stays the same. Another number of anchors has no such
        reading, and loaders that are not strict would go on with random ones.
        """
        name = f'{prefix}anchors'
        if name in state_dict:
            anchors = state_dict[name]
            if anchors.shape[0] == 1:
                anchors = anchors.expand(len(self.anchors), -1, -1)
            if anchors.shape != self.anchors.shape:
                raise ValueError(
                    f'{name} of the checkpoint has shape '
                    f'{tuple(state_dict[name].shape)}, but this layer wants '
                    f'{tuple(self.anchors.shape)} (1 or heads, num_anchors, '
                    'channels of a head): build the model with the '
                    "checkpoint's num_anchors and share_anchors"
                )
            state_dict[name] = anchors
        super()._load_from_state_dict(state_dict, prefix, *args)

    def anchors_of(self, x: Tensor) -> Tensor:
        """The learned anchors, shape (1, 1 or h, m, d), for any ``x``."""
        return self.anchors.unsqueeze(0)


class QueryAnchorAttention(BaseAnchorAttention):
    """Anchor attention whose anchors are m of the queries (figure 3a).

    The basic form, without learned anchors: it costs a query projection on
    top, and the choice of anchors passes no gradient. The paper does not say
    how they are chosen.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h; must divide ``embed_dims``.
        num_anchors: Anchors m, >= 1. With fewer tokens than that, every
            query is an anchor.
        select: ``'stride'`` takes evenly spaced queries, whatever they hold;
            ``'norm'`` the m with the largest norm over all heads.
        qkv_bias: Whether queries, keys and values have a bias.
        **kwargs: ``dwc_v``, ``attn_drop``, ``proj_drop``, see
            :class:`BaseAnchorAttention`.

    Shape:
        - Input: (B, n, D); output: (B, n, D).
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_anchors: int = 30,
        *,
        select: str = 'stride',
        qkv_bias: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(
            embed_dims, num_heads, num_anchors, qkv_bias=qkv_bias, **kwargs
        )
        if select not in ('stride', 'norm'):
            raise ValueError(
                f"select must be 'stride' or 'norm', got {select!r}"
            )
        self.select = select
        self.q = nn.Linear(embed_dims, embed_dims, bias=qkv_bias)

    def anchors_of(self, x: Tensor) -> Tensor:
        """The chosen queries of each image, shape (B, h, min(m, n), d)."""
        n = x.shape[1]
        m = min(self.num_anchors, n)
        if self.select == 'stride':
            # The middle of each of m equal runs of tokens.
            index = (2 * torch.arange(m, device=x.device) + 1) * n // (2 * m)
            return self.split_heads(self.q(x[:, index]))
        q = self.q(x)
        index = q.detach().float().square().sum(-1).topk(m, dim=1).indices
        index = index.sort(dim=1).values.unsqueeze(-1)
        return self.split_heads(
            q.gather(1, index.expand(-1, -1, self.embed_dims))
        )
