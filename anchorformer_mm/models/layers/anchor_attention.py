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
from anchorformer_mm.models.layers.attention import ATTENTIONS, BaseAttention

ORDERS = ('auto', 'paper', 'folded')
LOGITS = ('dot', 'standardized')
# On the variance of logits over tokens; deviations of 0.005 are hardly damped.
EPS = 1e-6


class BaseAnchorAttention(BaseAttention):
    """Anchor attention but for the anchors.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h; must divide ``embed_dims``.
        num_anchors: Anchors m, >= 1. May exceed the number of tokens.
        logits: ``'dot'``: products of keys and anchors, as in eq. 4.
            ``'standardized'``: their mean over the n tokens of the image is
            taken off, anchor by anchor, they are divided by their standard
            deviation, and multiplied by a learned factor of each head,
            ``logit_scale``. The keys' common part, for which the anchors
            would compete first, is then gone, and an anchor tells tokens
            apart whatever its norm.
        logit_scale: What the learned factor starts from.
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
    has_anchors = True
    tied = True

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_anchors: int = 30,
        *,
        logits: str = 'dot',
        logit_scale: float = 1.0,
        order: str = 'auto',
        **kwargs,
    ) -> None:
        super().__init__(embed_dims, num_heads, **kwargs)
        check_positive(num_anchors=num_anchors)
        check_one_of(LOGITS, logits=logits)
        check_above_zero(logit_scale=logit_scale)
        check_one_of(ORDERS, order=order)
        if order == 'folded' and self.dwc_v is not None:
            raise ValueError(
                "dwc_v convolves the values, which order='folded' does not "
                "make: order must be 'auto' or 'paper'"
            )
        self.num_anchors = num_anchors
        self.order = order
        self.logit_scale = None
        if logits == 'standardized':
            self.logit_scale = nn.Parameter(
                torch.full((num_heads, 1, 1), float(logit_scale))
            )

    @abstractmethod
    def anchors_of(self, x: Tensor) -> Tensor:
        """Anchors U for tokens (B, n, D), shape (1 or B, 1 or h, m, d).

        Where tokens are gathered by anchors of their own, these come first
        along the third axis, of length 2 m then.
        """

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        if self.folds(x.shape[1]):
            out = folded_attention(
                x,
                self.folded_weights(x),
                self.num_heads,
                self.logit_scale,
                tied=self.tied,
                read_drop=self.attn_drop,
            )
            return self.proj_drop(out)
        k, v = self.kv(x).chunk(2, dim=-1)
        out = anchor_aggregate(
            self.logits_of(x, self.split_heads(k)),
            self.split_heads(v),
            tied=self.tied,
            read_drop=self.attn_drop,
        )
        return self.project(out, v, hw_shape)

    def logits_of(self, x: Tensor, k: Tensor) -> Tensor:
        r"""Similarities :math:`k_i \cdot u_j / \sqrt d` (eq. 4), (B, h, n, m).

        Standardized where the layer does so, (B, h, n, 2 m) where it has
        anchors for gathering. ``x`` are tokens (B, n, D), ``k`` keys (B, h, n,
        d).
        """
        # Scaled before the product, which stays within fp16.
        logits = (self.anchors_of(x) * self.scale) @ k.transpose(-2, -1)
        if self.logit_scale is not None:
            logits = standardized(logits, self.logit_scale)
        return logits.transpose(-2, -1)

    def weights_of(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What tokens (B, n, D) have to do with the anchors, to look at.

        Returns:
            tuple[Tensor, Tensor, Tensor]: Logits of reading anchors out, A
            (sums to 1 over the m anchors) and G (over the n tokens), each of
            shape (B, h, n, m).
        """
        k = self.split_heads(self.kv(x).chunk(2, dim=-1)[0])
        logits = self.logits_of(x, k).transpose(-2, -1)
        read, gather = anchor_weights(logits, tied=self.tied)
        logits = logits[..., -read.shape[-2] :, :]
        return tuple(t.transpose(-2, -1) for t in (logits, read, gather))

    def folds(self, n: object) -> bool:
        """Tell whether n tokens are mixed in the folded order.

        Never where something else stands in place of a linear layer, such as
        LoRA's or a quantised one: the folded order reads weights, and does
        not call ``kv`` and ``proj``. Neither do forward hooks on them run:
        ``order='paper'`` is for those.
        """
        if self.dwc_v is not None or self.order == 'paper':
            return False
        if type(self.kv) is not nn.Linear or type(self.proj) is not nn.Linear:
            return False
        return self.order == 'folded' or folding_pays(
            n,
            self.embed_dims,
            self.num_heads,
            self.num_anchors,
            tied=self.tied,
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
        tied: Whether the same anchors gather from the tokens and are read out
            (the paper). If not, the weights of gathering are the softmax over
            tokens of the logits of anchors of their own, ``gather_anchors``.
        logit_std: Standard deviation of the logits at initialisation, over
            tokens of mean 0 and variance 1: keys' weights are scaled to keys
            of variance 1, and anchors to it. Near 0 every token is equally
            near to all anchors, the layer is global average pooling and its
            anchors have almost no gradient.
        anchor_std: In place of ``logit_std``, the standard deviation of the
            anchors themselves, with keys' weights as they are drawn; it means
            something else at each width.
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
        tied: bool = True,
        logit_std: float = 1.0,
        anchor_std: float | None = None,
        **kwargs,
    ) -> None:
        super().__init__(embed_dims, num_heads, num_anchors, **kwargs)
        check_above_zero(logit_std=logit_std)
        if anchor_std is not None:
            check_above_zero(anchor_std=anchor_std)
        self.share_anchors = share_anchors
        self.tied = tied
        self.logit_std = logit_std
        self.anchor_std = anchor_std
        shape = (1 if share_anchors else num_heads, num_anchors)
        channels = embed_dims // num_heads
        self.anchors = nn.Parameter(torch.empty(*shape, channels))
        self.gather_anchors = None
        if not tied:
            self.gather_anchors = nn.Parameter(torch.empty(*shape, channels))
        std = anchor_std or 1.0
        for anchors in (self.anchors, self.gather_anchors):
            if anchors is not None:
                nn.init.trunc_normal_(anchors, std=std, a=-2 * std, b=2 * std)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Scale the keys' weights to unit keys, the anchors to ``logit_std``.

        mmengine calls it after it has drawn the weights, and before it loads
        a checkpoint.
        """
        if self.anchor_std is not None:
            return
        key = self.kv.weight[: self.embed_dims]
        # Small keys with large anchors would learn at unlike rates.
        key.div_(key.square().sum(1).mean().sqrt())
        key = key.unflatten(0, (self.num_heads, -1))
        for anchors in (self.anchors, self.gather_anchors):
            if anchors is None:
                continue
            logits = (anchors * self.scale) @ key  # of unit tokens, (h, m, D)
            std = logits.square().sum(-1, keepdim=True)
            if self.share_anchors:
                std = std.mean(0, keepdim=True)
            anchors.mul_(self.logit_std / std.sqrt())

    def anchors_of(self, x: Tensor) -> Tensor:
        """Learned anchors, shape (1, 1 or h, m or 2 m, d), for any ``x``."""
        anchors = self.anchors
        if not self.tied:
            anchors = torch.cat((self.gather_anchors, anchors), dim=1)
        return anchors.unsqueeze(0)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Return the same function for evaluation, with folded weights only.

        It is a :class:`FusedAnchorAttention`; or this layer itself, if it
        convolves values, or if the paper's order is cheaper for many tokens.
        """
        if not self.folds(None):
            return self
        weights = self.folded_weights(self.kv.weight)
        return FusedAnchorAttention(
            weights, self.num_heads, self.logit_scale, tied=self.tied
        )

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Fit the anchors of a checkpoint, or refuse them.

        Anchors shared by all heads are repeated where each head has its own:
        the function stays the same. Another number of anchors has no such
        reading, and loaders that are not strict would go on with random ones.
        """
        for name in (f'{prefix}anchors', f'{prefix}gather_anchors'):
            if name not in state_dict:
                continue
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


ATTENTIONS.update(learned=AnchorAttention, query=QueryAnchorAttention)


def anchor_aggregate(
    logits: Tensor,
    v: Tensor,
    *,
    tied: bool = True,
    read_drop: Callable[[Tensor], Tensor] | None = None,
    read_index: Tensor | None = None,
) -> Tensor:
    r"""One step of the Markov chain token -> anchor -> token (eq. 4, 6-12).

    With A = softmax over anchors of the logits and
    :math:`\Delta = diag(\sum_i A_{ij})`, it computes
    :math:`H = A (\Delta^{-1} (A^\top V))` from right to left: O(n m d) time,
    O(n m) memory, and no n x n matrix. Not tied, the second factor is
    :math:`G^\top V`; see :func:`anchor_weights`.

    Args:
        logits: Pivotal similarities, scaled, shape (..., n, m), or (..., n,
            2 m) if not tied.
        v: Values, shape (..., n, d).
        tied: Whether tokens are gathered and anchors read out by the same
            logits.
        read_drop: Applied to A where the anchors are read out (dropout).
        read_index: Tokens that read the anchors out, shape (r,), integer:
            these rows of H, in this order. The anchors gather from all
            tokens regardless. By default every token reads.

    Returns:
        Tensor: Mixed values, shape (..., n or r, d), dtype of ``v``.
    """
    read, gather = anchor_weights(logits.transpose(-2, -1), tied=tied)
    if read_index is not None:
        read = read.index_select(-1, read_index)
    read, gather = read.to(v.dtype), gather.to(v.dtype)
    if read_drop is not None:
        read = read_drop(read)
    return read.transpose(-2, -1) @ (gather @ v)


def anchor_weights(
    logits: Tensor, *, tied: bool = True
) -> tuple[Tensor, Tensor]:
    r"""Weights A of reading anchors out, and G of gathering from tokens.

    A is the softmax of the logits over anchors. Tied, as in the paper,
    :math:`G = A \Delta^{-1}`, evaluated in the log domain: it is the softmax
    of log A over the **tokens**, so nothing is divided, and result and
    gradient are finite for every finite logit, also where an anchor collects
    no mass or all of it. Not tied, G is the softmax over tokens of the first
    half of the logits, and A that over anchors of the second.

    Args:
        logits: Tokens last, shape (..., m, n), or (..., 2 m, n) if not tied.

    Returns:
        tuple[Tensor, Tensor]: A and G, both (..., m, n), in fp32 (fp64 for
        fp64 logits), whatever dtype the products use.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if tied:
        log_a = logits.log_softmax(-2)
        return log_a.exp(), log_a.softmax(-1)
    gather, read = logits.chunk(2, -2)
    return read.softmax(-2), gather.softmax(-1)


def standardized(logits: Tensor, scale: Tensor) -> Tensor:
    """Logits of mean 0 and deviation ``scale`` over the n tokens, in fp32.

    A single token, or tokens that are all alike, give zeros. Logits are
    (B, h, m, n), ``scale`` is (h, 1, 1).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Groups of one channel: one pass, several times faster than mean and
    # deviation by themselves.
    flat = logits.flatten(1, 2)
    weight = scale.to(logits.dtype).expand(-1, logits.shape[2], 1).flatten()
    flat = torch.group_norm(flat, flat.shape[1], weight, eps=EPS)
    return flat.unflatten(1, logits.shape[1:3])


class FoldedWeights(NamedTuple):
    """Weights that the folded order multiplies tokens with."""

    # Of anchors times the keys' projection; m stands for 2 m if not tied.
    logit: Tensor  # (1 or B, h m, D)
    logit_bias: Tensor | None  # of the keys' bias, (1 or B, h m, 1)
    value: Tensor  # (D, D)
    value_bias: Tensor | None  # (D,)
    out: Tensor  # (D, D)
    out_bias: Tensor  # (D,)


def paper_macs(
    n: int, embed_dims: int, num_heads: int, m: int, *, tied: bool = True
) -> int:
    """Multiply-accumulates of n tokens in the paper's order, 3nD² + 3nmD.

    Not tied, 3nD² + 4nmD.
    """
    return n * embed_dims * (3 * embed_dims + (4 - tied) * m)


def folded_macs(
    n: int, embed_dims: int, num_heads: int, m: int, *, tied: bool = True
) -> int:
    """Multiply-accumulates in the folded order, 3nhmD and 3mD² for weights.

    Not tied, 4nhmD and 4mD².
    """
    return (4 - tied) * m * embed_dims * (n * num_heads + embed_dims)


def folding_pays(
    n: object, embed_dims: int, num_heads: int, m: int, *, tied: bool = True
) -> bool:
    """Tell whether the folded order has fewer multiply-accumulates.

    Where n is no int, such as a symbol in a compilation for any size, nothing
    is compared with it: the answer is that for many tokens.
    """
    if type(n) is not int:
        n = 1 << 40
    sizes = (n, embed_dims, num_heads, m)
    return folded_macs(*sizes, tied=tied) < paper_macs(*sizes, tied=tied)


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
    logit_scale: Tensor | None = None,
    *,
    tied: bool = True,
    read_drop: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Mix tokens through anchors in the folded order.

    Tokens are (B, n, D); so is the result. Weights and ``read_drop`` are those
    of :func:`.anchor_aggregate`; with ``logit_scale`` logits are
    :func:`standardized`. Tokens come last in logits and weights, as both
    products with them want it.
    """
    logits = weights.logit.expand(x.shape[0], -1, -1).bmm(x.transpose(1, 2))
    if weights.logit_bias is not None:
        logits = logits + weights.logit_bias
    dtype = logits.dtype
    logits = logits.unflatten(1, (num_heads, -1))
    if logit_scale is not None:
        logits = standardized(logits, logit_scale)
    read, gather = anchor_weights(logits, tied=tied)
    read, gather = read.to(dtype), gather.to(dtype)
    if read_drop is not None:
        read = read_drop(read)
    # (h, B m, d), projected to (h, B m, D), and (B, h m, D) for the product.
    z = gathered_values(
        gather, x, weights.value, weights.value_bias, num_heads
    )
    z = z.bmm(weights.out.unflatten(1, (num_heads, -1)).permute(1, 2, 0))
    z = z.unflatten(1, (-1, gather.shape[2])).transpose(0, 1).flatten(1, 2)
    return weights.out_bias.baddbmm(read.flatten(1, 2).transpose(1, 2), z)


def gathered_values(
    gather: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_heads: int,
) -> Tensor:
    r"""Tokens gathered by anchors, then projected: :math:`(G^\top X) W_V`.

    For each of h heads, with transposed G (B, h, m, n), tokens (B, n, D), and
    weight (h d, D) and bias (h d,) of the values' projection; (h, B m, d).
    """
    h = num_heads  # a number, also in a trace
    z = gather.flatten(1, 2).bmm(x)
    # Heads before images: a product for each head, of weights as they lie.
    # Not by unflatten: torch's default ONNX exporter drops reshapes around a
    # product, which then broadcasts over heads where a batch has as many.
    z = torch.stack(z.chunk(h, dim=1)).flatten(1, 2)
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
        logit_scale: Factor of standardized logits, shape (h, 1, 1).
        tied: Whether the same anchors gather and are read out.

    Shape:
        - Input: (B, n, D); output: (B, n, D).
    """

    def __init__(
        self,
        weights: FoldedWeights,
        num_heads: int,
        logit_scale: Tensor | None = None,
        *,
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.tied = tied
        self.embed_dims = weights.out.shape[0]
        self.num_heads = num_heads
        out_bias = weights.out_bias
        if weights.value_bias is not None:
            out_bias = out_bias + weights.out @ weights.value_bias
        for name, weight in (
            ('logit_weight', weights.logit),
            ('logit_bias', weights.logit_bias),
            ('logit_scale', logit_scale),
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
        return folded_attention(
            x, weights, self.num_heads, self.logit_scale, tied=self.tied
        )
