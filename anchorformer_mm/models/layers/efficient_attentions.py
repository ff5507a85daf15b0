r"""Attention of linear cost, by others: what anchor attention is measured by.

Written from the equations of the papers, on the projections and the options
of :class:`BaseAttention`. Depthwise convolutions that some papers add to the
values are ``dwc_v``, position biases are left out: what differs is how tokens
are mixed. Notation: n tokens of D channels, h heads of d channels, Q, K and V
those of one head. Costs are multiply-accumulates of a layer for one image.
"""

from math import isqrt, pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anchorformer_mm.models.argument_checks import (
    check_above_zero,
    check_one_of,
    check_positive,
)
from anchorformer_mm.models.layers.attention import (
    ATTENTIONS,
    BaseAttention,
    split_map,
)
from anchorformer_mm.models.layers.cluster_attention import at_least_fp32

# The least that is divided by, always in fp32.
EPS = 1e-6


class AgentAttention(BaseAttention):
    r"""Attention through pooled queries, Agent Attention (arXiv 2312.08874).

    .. math:: V_A = softmax(A K^\top / \sqrt d) V, \quad
              O = softmax(Q A^\top / \sqrt d) V_A

    The m agents A are means of the map's queries over the cells of a grid, as
    of adaptive average pooling: cells of small maps overlap. Class tokens are
    in no cell, but have queries, keys and values. The learned position biases
    of the agents, which hold for one size of the map, are left out.

    Cost: :math:`4 n D^2 + 4 n m D`.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h; must divide ``embed_dims``.
        num_anchors: Agents m; the nearest number that is a grid, not much
            wider than high: 30 are 5 x 6, 49 are 7 x 7, 10 become 3 x 3.
        **kwargs: See :class:`BaseAttention`.

    Raises:
        ValueError: An argument is out of its range; or, in :meth:`forward`,
            ``hw_shape`` is missing or too large.

    Shape:
        - Input: (B, n, D), n >= 1; output: (B, n, D).
    """

    input_projection = ('qkv', 3)
    has_anchors = True

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_anchors: int = 49,
        **kwargs,
    ) -> None:
        super().__init__(embed_dims, num_heads, **kwargs)
        check_positive(num_anchors=num_anchors)
        rows = isqrt(num_anchors)
        # A module: the exporter knows what to put in its place.
        self.pool = nn.AdaptiveAvgPool2d((rows, round(num_anchors / rows)))

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        agents = self.pool(split_map(q, hw_shape, 'agent attention')[1])
        agents = agents.flatten(2).transpose(1, 2)
        q, agents, k, values = map(self.split_heads, (q, agents, k, v))
        out = self.attend(q, agents, self.attend(agents, k, values))
        return self.project(out, v, hw_shape)


class LinearAttention(BaseAttention):
    r"""Linear attention (arXiv 2006.16236; with ReLU also 2205.14756).

    .. math:: O_i = \frac{\phi(Q_i) \sum_j \phi(K_j)^\top V_j}
                         {\phi(Q_i) \cdot \sum_j \phi(K_j)}

    Evaluated as two weighted means, of weights that sum to 1: over the tokens
    for each channel of the keys, then over the channels. So no value is larger
    than those of V, in half precision too. Weights are made in fp32. The
    denominator is 1e-6 at least: a query that has no channel in common with
    any key (ReLU) gives zero.

    Cost: :math:`4 n D^2 + 2 n d D`.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h; must divide ``embed_dims``.
        feature_map: :math:`\phi`: ``'relu'``, or ``'elu'``, which is elu + 1.
        **kwargs: See :class:`BaseAttention`; ``attn_drop`` is on the weights
            over the channels.

    Shape:
        - Input: (B, n, D), n >= 1; output: (B, n, D).
    """

    input_projection = ('qkv', 3)

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        *,
        feature_map: str = 'relu',
        **kwargs,
    ) -> None:
        super().__init__(embed_dims, num_heads, **kwargs)
        check_one_of(('relu', 'elu'), feature_map=feature_map)
        self.feature_map = feature_map

    def features(self, x: Tensor) -> Tensor:
        """Make queries or keys (B, h, n, d) not negative; same shape."""
        return x.relu() if self.feature_map == 'relu' else F.elu(x) + 1

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        values = self.split_heads(v)
        q, k = (
            self.features(at_least_fp32(self.split_heads(t))) for t in (q, k)
        )
        total = k.sum(dim=-2, keepdim=True)
        # So small that only zeros are changed by it.
        gather = k / total.clamp(min=EPS**2)
        read = q * total
        read = read / read.sum(dim=-1, keepdim=True).clamp(min=EPS)
        gather, read = gather.to(v.dtype), self.attn_drop(read.to(v.dtype))
        out = read @ (gather.transpose(-2, -1) @ values)
        return self.project(out, v, hw_shape)


class FocusedAttention(LinearAttention):
    r"""Focused linear attention (arXiv 2308.00442).

    Linear attention with :math:`\phi(x) = f_p(ReLU(x))`, :math:`f_p(x) =
    \|x\| / \|x^p\| \, x^p`, power and norm over the d channels of a head: the
    norm stays, the direction turns to the nearest axes. The 5 x 5 convolution
    of the values (here 3 x 3, by ``dwc_v``), the learned scale of the channels
    and the position encoding of the keys are left out.

    Cost: :math:`4 n D^2 + 2 n d D`.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h; must divide ``embed_dims``.
        power: The exponent p; 1 is linear attention with ReLU.
        **kwargs: As for :class:`LinearAttention`, without ``feature_map``.

    Shape:
        - Input: (B, n, D), n >= 1; output: (B, n, D).
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        *,
        power: int = 3,
        **kwargs,
    ) -> None:
        super().__init__(embed_dims, num_heads, feature_map='relu', **kwargs)
        check_positive(power=power)
        self.power = power

    def features(self, x: Tensor) -> Tensor:
        x = x.relu()
        norm = x.norm(dim=-1, keepdim=True)
        # Of the unit vector, whose powers neither overflow nor vanish.
        powers = (x / norm.clamp(min=EPS)) ** self.power
        return norm * F.normalize(powers, dim=-1, eps=EPS)


class CastlingAttention(BaseAttention):
    r"""Linear-angular attention of Castling-ViT (arXiv 2211.10526).

    The angle between a query and a key gives their similarity,
    :math:`1 - \theta / \pi`, of which the linear part stays. With q and k the
    rows of Q and K over their norms,

    .. math:: u = \frac12 V + \frac1\pi q (k^\top V) + M V, \quad
              O_i = u_i / \|u_i\|

    by head. Values are thus mixed with sums, not means; the norm of O, which
    would grow with n, is made 1. M, in training only, are those weights of
    softmax attention that exceed ``threshold`` / n; where no token stands out,
    none do, and a trained layer should not miss them: it is how strong
    similarities, which a linear part cannot express, help it to learn. The
    depthwise convolution of the values is ``dwc_v``.

    Cost: :math:`4 n D^2 + 2 n d D`; in training :math:`2 n^2 D` more, and
    n x n memory.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h; must divide ``embed_dims``.
        threshold: What weights have to exceed, over their mean 1 / n; 4 is
            0.02 for 196 tokens. None leaves M out in training too.
        **kwargs: See :class:`BaseAttention`; ``attn_drop`` is on M.

    Shape:
        - Input: (B, n, D), n >= 1; output: (B, n, D).
    """

    input_projection = ('qkv', 3)

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        *,
        threshold: float | None = 4.0,
        **kwargs,
    ) -> None:
        super().__init__(embed_dims, num_heads, **kwargs)
        if threshold is not None:
            check_above_zero(threshold=threshold)
        self.threshold = threshold

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        n = x.shape[1]
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        # The norm of O cancels this factor; sums stay within fp16 with it.
        values = self.split_heads(v) * n**-0.5
        q, k = self.split_heads(q), self.split_heads(k)
        unit_q, unit_k = (_unit(t).to(v.dtype) for t in (q, k))
        out = values / 2 + unit_q @ (unit_k.transpose(-2, -1) @ values) / pi
        if self.training and self.threshold is not None:
            weights = (q * self.scale) @ k.transpose(-2, -1)
            weights = at_least_fp32(weights).softmax(dim=-1)
            weights = weights.where(weights > self.threshold / n, 0)
            out = out + self.attn_drop(weights.to(v.dtype)) @ values
        return self.project(_unit(out).to(v.dtype), v, hw_shape)


def _unit(x: Tensor) -> Tensor:
    """Divide rows by their norms, in fp32 at least."""
    return F.normalize(at_least_fp32(x), dim=-1, eps=EPS)


class PaCaAttention(BaseAttention):
    r"""Patch-to-cluster attention, PaCa-ViT (arXiv 2203.11987).

    .. math:: C = softmax_{tokens}(X W_C), \quad Z = LN(C^\top X), \quad
              O = softmax(Q K^\top / \sqrt d) V, \quad (K, V) = Z W_{KV}

    M clusters of all tokens, for all heads, are keys and values. Their
    assignment C is the paper's linear one; the convolutional, which the paper
    prefers by a little, is left out. There is no ``dwc_v``: values are not of
    the map.

    Cost: :math:`2 n D^2 + 2 M D^2 + 4 n M D`.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h; must divide ``embed_dims``.
        num_anchors: Clusters M, also more than there are tokens.
        qkv_bias: Whether the projections to Q, K and V have a bias.
        attn_drop: Dropout on the attention weights, in [0, 1).
        proj_drop: Dropout on the output, in [0, 1).

    Shape:
        - Input: (B, n, D), n >= 1; output: (B, n, D).
    """

    input_projection = ('q', 1)
    has_anchors = True

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_anchors: int = 49,
        *,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        drops = dict(attn_drop=attn_drop, proj_drop=proj_drop)
        super().__init__(embed_dims, num_heads, qkv_bias=qkv_bias, **drops)
        check_positive(num_anchors=num_anchors)
        self.assign = nn.Linear(embed_dims, num_anchors, bias=False)
        self.norm = nn.LayerNorm(embed_dims, eps=EPS)
        self.kv = nn.Linear(embed_dims, 2 * embed_dims, bias=qkv_bias)

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        weights = at_least_fp32(self.assign(x)).softmax(dim=1).to(x.dtype)
        clusters = self.norm(weights.transpose(1, 2) @ x)
        q, (k, v) = self.q(x), self.kv(clusters).chunk(2, dim=-1)
        out = self.attend(*map(self.split_heads, (q, k, v)))
        return self.project(out, x, hw_shape)


class PoolAttention(BaseAttention):
    r"""PoolFormer's pooling in place of attention (arXiv 2111.11418).

    :math:`O_i = mean_{j \in N(i)} X_j - X_i`, where N(i) are the 3 x 3
    neighbours of a token on the map, as far as there are such. A class token
    takes the mean of all tokens as its neighbours'; no other token sees it.
    There are no weights, nor ``qkv_bias``, ``attn_drop`` and ``dwc_v``.

    Cost: no products, 9 n D additions.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: As of the other layers; changes nothing.
        proj_drop: Dropout on the output, in [0, 1).

    Raises:
        ValueError: An argument is out of its range; or, in :meth:`forward`,
            ``hw_shape`` is missing or too large.

    Shape:
        - Input: (B, n, D), n >= 1; output: (B, n, D).
    """

    input_projection = None

    def __init__(
        self, embed_dims: int, num_heads: int, *, proj_drop: float = 0.0
    ) -> None:
        super().__init__(embed_dims, num_heads, proj_drop=proj_drop)

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        extra, feature = split_map(x, hw_shape, 'pooling')
        mean = F.avg_pool2d(feature, 3, 1, 1, count_include_pad=False)
        mean = mean.flatten(2).transpose(1, 2)
        everything = x.mean(dim=1, keepdim=True).repeat(1, extra.shape[1], 1)
        return self.proj_drop(torch.cat((everything, mean), dim=1) - x)


ATTENTIONS.update(
    agent=AgentAttention,
    linear=LinearAttention,
    focused=FocusedAttention,
    castling=CastlingAttention,
    paca=PaCaAttention,
    pool=PoolAttention,
)
