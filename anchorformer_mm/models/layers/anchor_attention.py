r"""Anchor attention: tokens attend to each other through m anchors.

AnchorFormer (arXiv 2505.16463), equations 4 and 6 to 13 and figure 3.
Notation: n tokens X (n x D), m anchors U (m x d), h heads of d channels,
D = h * d; of one head W_K, W_V (D x d) and W_O (d x D).

With :math:`S = X W_K U^\top / \sqrt d` and A its softmax over the anchors, an
image's tokens become :math:`A \Delta^{-1} A^\top X W_V W_O`, where
:math:`\Delta` holds the sums of A over the tokens. The products can be taken
in two orders, which give the same up to rounding:

- the paper's: keys :math:`X W_K` and values :math:`X W_V` first;
- folded: keys and values are used through the anchors only, so neither is
  made. Logits are :math:`X (W_K U^\top)`, for all heads one product of the
  tokens with a D x (h m) matrix; tokens are gathered first and then projected,
  m rows in place of n, :math:`Z = (\Delta^{-1} A^\top X) W_V`; the output
  :math:`\sum_i A_i (Z_i W_O)` is one product of n x (h m) and (h m) x D.
  Columns of :math:`A \Delta^{-1}` sum to one, so biases fold exactly too.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anchorformer_mm.models.argument_checks import (
    check_above_zero,
    check_one_of,
    check_positive,
)
from anchorformer_mm.models.layers.attention import BaseAttention

ORDERS = ('auto', 'paper', 'folded')


class BaseAnchorAttention(BaseAttention):
    """Anchor attention but for the anchors.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h; must divide ``embed_dims``.
        num_anchors: Anchors m, >= 1. May exceed the number of tokens.
        order: In which order the products are taken; the function and the
            weights are the same. ``'paper'``: keys and values first.
            ``'folded'``: neither. ``'auto'``: of both the one with fewer
            multiply-accumulates.
        **kwargs: ``dwc_v`` (which needs values, so the paper's order),
            ``qkv_bias``, ``attn_drop`` (on A where anchors are read out),
            ``proj_drop``, see :class:`BaseAttention`.

    Shape:
        - Input: (B, n, D), n >= 1; output: (B, n, D).
    """

    input_projection = ('kv', 2)

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_anchors: int = 30,
        *,
        order: str = 'auto',
        **kwargs,
    ) -> None:
        super().__init__(embed_dims, num_heads, **kwargs)
        check_positive(num_anchors=num_anchors)
        check_one_of(ORDERS, order=order)
        if order == 'folded' and self.dwc_v is not None:
            raise ValueError(
                "dwc_v convolves the values, which order='folded' does not "
                "make: order must be 'auto' or 'paper'"
            )
        self.num_anchors = num_anchors
        self.order = order

    @abstractmethod
    def anchors_of(self, x: Tensor) -> Tensor:
        """Anchors U for tokens (B, n, D), shape (1 or B, 1 or h, m, d)."""

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        if self.folds(x.shape[1]):
            out = folded_attention(
                x, self.folded_weights(x), self.num_heads, self.attn_drop
            )
            return self.proj_drop(out)
        k, v = self.kv(x).chunk(2, dim=-1)
        out = anchor_aggregate(
            self.logits_of(x, self.split_heads(k)),
            self.split_heads(v),
            read_drop=self.attn_drop,
        )
        return self.project(out, v, hw_shape)

    def logits_of(self, x: Tensor, k: Tensor) -> Tensor:
        r"""Similarities :math:`k_i \cdot u_j / \sqrt d` (eq. 4), (B, h, n, m).

        ``x`` are tokens (B, n, D), ``k`` keys (B, h, n, d).
        """
        # Scaled before the product, which stays within fp16.
        return k @ (self.anchors_of(x) * self.scale).transpose(-2, -1)

    def weights_of(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, read weights A and gather weights for tokens (B, n, D).

        Each has shape (B, h, n, m). A sums to one over the anchors, gather
        weights over the tokens.
        """
        k = self.kv(x).chunk(2, dim=-1)[0]
        logits = self.logits_of(x, self.split_heads(k))
        log_a = log_weights(logits, dim=-1)
        return logits, log_a.exp(), log_a.softmax(dim=-2)

    def folds(self, n: object) -> bool:
        """Tell whether n tokens are mixed in the folded order."""
        if self.dwc_v is not None or self.order == 'paper':
            return False
        return self.order == 'folded' or folding_pays(
            n, self.embed_dims, self.num_heads, self.num_anchors
        )

    def folded_weights(self, x: Tensor) -> 'FoldedWeights':
        """Weights of the folded order, for tokens (B, n, D)."""
        key, value = self.kv.weight.chunk(2)
        key_bias = value_bias = None
        if self.kv.bias is not None:
            key_bias, value_bias = self.kv.bias.chunk(2)
        return FoldedWeights(
            *fold_keys(self.anchors_of(x) * self.scale, key, key_bias),
            value,
            value_bias,
            self.proj.weight,
            self.proj.bias,
        )


class AnchorAttention(BaseAnchorAttention):
    r"""Anchor attention with learned anchors (eq. 13, figure 3b).

    The anchors are weights; there is no query projection at all. A token costs
    :math:`3 D^2 + 3 m D` multiply-accumulates in the paper's order and
    :math:`3 h m D` in the folded one: linear in their number. :meth:`fuse`
    freezes the product of anchors and keys' projection, which the folded order
    otherwise takes in every forward pass.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h.
        num_anchors: Anchors m.
        share_anchors: One d x m matrix for all heads, as in the authors'
            release (default), or one for each head, as the text has it.
        anchor_std: Standard deviation of the anchors at initialisation. With
            the release's 0.02 every token starts equally near to all
            anchors, that is, the layer starts as global average pooling; 1.0
            starts with distinct anchors.
        **kwargs: See :class:`BaseAnchorAttention`.

    Raises:
        ValueError: An argument is out of its range, or a checkpoint has other
            anchors.

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
        check_above_zero(anchor_std=anchor_std)
        self.share_anchors = share_anchors
        self.anchor_std = anchor_std
        shape = (1 if share_anchors else num_heads, num_anchors)
        channels = embed_dims // num_heads
        self.anchors = nn.Parameter(torch.empty(*shape, channels))
        self.reset_anchors()

    def reset_anchors(self) -> None:
        """Draw the anchors anew from a truncated normal distribution."""
        std = self.anchor_std
        nn.init.trunc_normal_(self.anchors, std=std, a=-2 * std, b=2 * std)

    def anchors_of(self, x: Tensor) -> Tensor:
        """Learned anchors, shape (1, 1 or h, m, d), for any ``x``."""
        return self.anchors.unsqueeze(0)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Return the same function for evaluation, with folded weights only.

        It is a :class:`FusedAnchorAttention`; or this layer itself, if it
        convolves values, or if the paper's order is cheaper for many tokens.
        """
        if not self.folds(None):
            return self
        weights = self.folded_weights(self.kv.weight)
        return FusedAnchorAttention(weights, self.num_heads)

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


class QueryAnchorAttention(BaseAnchorAttention):
    """Anchor attention whose anchors are m of the queries (figure 3a).

    The basic form, without learned anchors: it costs a query projection on
    top, and the choice of anchors passes no gradient. The paper does not say
    how they are chosen.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h.
        num_anchors: Anchors m; all queries, where there are fewer.
        select: ``'stride'`` takes evenly spaced queries, whatever they hold;
            ``'norm'`` the m with the largest norm over all heads.
        qkv_bias: Whether queries, keys and values have a bias.
        **kwargs: See :class:`BaseAnchorAttention`.
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
        check_one_of(('stride', 'norm'), select=select)
        self.select = select
        self.q = nn.Linear(embed_dims, embed_dims, bias=qkv_bias)

    def anchors_of(self, x: Tensor) -> Tensor:
        """Chosen queries of each image, shape (B, h, min(m, n), d)."""
        n = x.shape[1]
        m = min(self.num_anchors, n)
        if self.select == 'stride':
            # The middle of each of m equal runs of tokens.
            index = (2 * torch.arange(m, device=x.device) + 1) * n // (2 * m)
            return self.split_heads(self.q(x[:, index]))
        q = self.q(x)
        index = q.detach().float().square().sum(-1).topk(m, dim=1).indices
        index = index.sort(dim=1).values.unsqueeze(-1)
        q = q.gather(1, index.expand(-1, -1, self.embed_dims))
        return self.split_heads(q)


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
    log_a = log_weights(logits, dim=-1)
    gather = log_a.softmax(dim=-2).to(v.dtype)
    if read_index is not None:
        log_a = log_a.index_select(-2, read_index)
    scatter = log_a.exp().to(v.dtype)
    if read_drop is not None:
        scatter = read_drop(scatter)
    return scatter @ (gather.transpose(-2, -1) @ v)


def log_weights(logits: Tensor, dim: int) -> Tensor:
    """Return log A, in fp32 at least; ``dim`` is that of the anchors."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype).log_softmax(dim)


class FoldedWeights(NamedTuple):
    """Weights that the folded order multiplies tokens with."""

    logit: Tensor  # anchors times the keys' projection, (1 or B, h m, D)
    logit_bias: Tensor | None  # of the keys' bias, (1 or B, h m, 1)
    value: Tensor  # (D, D)
    value_bias: Tensor | None  # (D,)
    out: Tensor  # (D, D)
    out_bias: Tensor  # (D,)


def paper_macs(n: int, embed_dims: int, num_heads: int, m: int) -> int:
    """Multiply-accumulates of n tokens in the paper's order, 3nD² + 3nmD."""
    return 3 * n * embed_dims * (embed_dims + m)


def folded_macs(n: int, embed_dims: int, num_heads: int, m: int) -> int:
    """Multiply-accumulates in the folded order, 3nhmD and 3mD² for weights."""
    return 3 * m * embed_dims * (n * num_heads + embed_dims)


def folding_pays(n: object, embed_dims: int, num_heads: int, m: int) -> bool:
    """Tell whether the folded order has fewer multiply-accumulates.

    Where n is no int, such as a symbol in a compilation for any size, nothing
    is compared with it: the answer is that for many tokens.
    """
    if type(n) is not int:
        return num_heads * m < embed_dims + m
    sizes = (n, embed_dims, num_heads, m)
    return folded_macs(*sizes) < paper_macs(*sizes)


def fold_keys(
    anchors: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    r"""Multiply anchors into the projection of the keys, :math:`U W_K^\top`.

    Anchors (1 or B, 1 or h, m, d), divided by the root of d, weight (h d, D)
    and bias (h d,) give (1 or B, h m, D), and what the bias adds to the
    logits, (1 or B, h m, 1), if there is one.
    """
    d = anchors.shape[-1]
    logits = anchors @ weight.unflatten(0, (-1, d))
    if bias is not None:
        bias = anchors @ bias.unflatten(0, (-1, d)).unsqueeze(-1)
        bias = bias.flatten(1, 2)
    return logits.flatten(1, 2), bias


def folded_attention(
    x: Tensor,
    weights: FoldedWeights,
    num_heads: int,
    read_drop: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Mix tokens through anchors in the folded order.

    Tokens are (B, n, D); so is the result. The softmaxes and ``read_drop`` are
    those of :func:`.anchor_aggregate`. Tokens come last in logits and weights,
    as both products with them want it.
    """
    logits = weights.logit.expand(x.shape[0], -1, -1).bmm(x.transpose(1, 2))
    if weights.logit_bias is not None:
        logits = logits + weights.logit_bias
    log_a = log_weights(logits.unflatten(1, (num_heads, -1)), dim=2)
    gather = log_a.softmax(dim=-1).to(logits.dtype)
    scatter = log_a.exp().to(logits.dtype)
    if read_drop is not None:
        scatter = read_drop(scatter)
    # (h, B m, d), projected to (h, B m, D), and (B, h m, D) for the product.
    z = gathered_values(gather, x, weights.value, weights.value_bias)
    z = z.bmm(weights.out.unflatten(1, (num_heads, -1)).permute(1, 2, 0))
    z = z.unflatten(1, (-1, gather.shape[2])).transpose(0, 1).flatten(1, 2)
    return weights.out_bias.baddbmm(scatter.flatten(1, 2).transpose(1, 2), z)


def gathered_values(
    gather: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    r"""Tokens gathered by anchors, then projected: :math:`(G^\top X) W_V`.

    For each of h heads, with transposed G (B, h, m, n), tokens (B, n, D), and
    weight (h d, D) and bias (h d,) of the values' projection; (h, B m, d).
    """
    _, h, m, _ = gather.shape
    z = gather.flatten(1, 2).bmm(x).unflatten(1, (h, m))
    # Heads before images: a product for each head, of weights as they lie.
    z = z.transpose(0, 1).flatten(1, 2)
    weight = weight.unflatten(0, (h, -1)).transpose(1, 2)
    if bias is None:
        return z.bmm(weight)
    return bias.unflatten(0, (h, 1, -1)).baddbmm(z, weight)


class FusedAnchorAttention(nn.Module):
    r"""Anchor attention with folded weights, by :meth:`.AnchorAttention.fuse`.

    The anchors are multiplied into the keys' projection: h m x D weights in
    place of the keys' D x D and the anchors. A token costs :math:`3 h m D`
    multiply-accumulates, an image :math:`2 m D^2` besides. No dropout, no
    gradients.

    Args:
        weights: Copied. Rows of A sum to one, so what a bias of the values
            adds is a constant, and becomes part of the output's bias.
        num_heads: Heads h.

    Shape:
        - Input: (B, n, D); output: (B, n, D).
    """

    def __init__(self, weights: FoldedWeights, num_heads: int) -> None:
        super().__init__()
        self.embed_dims = weights.out.shape[0]
        self.num_heads = num_heads
        out_bias = weights.out_bias
        if weights.value_bias is not None:
            out_bias = out_bias + weights.out @ weights.value_bias
        for name, weight in (
            ('logit_weight', weights.logit),
            ('logit_bias', weights.logit_bias),
            ('value_weight', weights.value),
            ('out_weight', weights.out),
            ('out_bias', out_bias),
        ):
            if weight is not None:
                weight = nn.Parameter(weight.clone(), requires_grad=False)
            self.register_parameter(name, weight)
        self.eval()

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        keys = self.logit_weight, self.logit_bias
        out = self.out_weight, self.out_bias
        weights = FoldedWeights(*keys, self.value_weight, None, *out)
        return folded_attention(x, weights, self.num_heads)
