"""Multi-head attention: the common base, vanilla attention, and a builder."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from anchorformer_mm.models.argument_checks import (
    check_one_of,
    check_positive,
    check_rates,
)


class BaseAttention(nn.Module, ABC):
    """Multi-head token mixer with one input and one output projection.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h; must divide ``embed_dims``.
        qkv_bias: Whether the input projection has a bias.
        attn_drop: Dropout on the attention weights, in [0, 1).
        proj_drop: Dropout on the output, in [0, 1).
        dwc_v: Adds a depthwise 3x3 convolution of V to the output. Attention
            with softmax weights can only average values; this adds a local,
            signed path, which the paper has not. Tokens that are not of the
            map (class tokens) get none.

    Shape:
        - Input: (B, n, D), n >= 1; output: (B, n, D).
    """

    # Name of the input projection, and its output channels over D; None: the
    # layer has no projections.
    input_projection: ClassVar[tuple[str, int] | None]
    # Whether the third argument is ``num_anchors``.
    has_anchors: ClassVar[bool] = False

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        *,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        dwc_v: bool = False,
    ) -> None:
        super().__init__()
        check_positive(embed_dims=embed_dims, num_heads=num_heads)
        if embed_dims % num_heads:
            raise ValueError(
                'embed_dims must be divisible by num_heads, got '
                f'embed_dims={embed_dims}, num_heads={num_heads}'
            )
        check_rates(attn_drop=attn_drop, proj_drop=proj_drop)
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.scale = (embed_dims // num_heads) ** -0.5

        if self.input_projection is not None:
            name, multiple = self.input_projection
            project = nn.Linear(
                embed_dims, multiple * embed_dims, bias=qkv_bias
            )
            self.add_module(name, project)
            self.proj = nn.Linear(embed_dims, embed_dims)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)
        self.dwc_v = (
            nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)
            if dwc_v
            else None
        )

    @abstractmethod
    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        """Mix the tokens.

        Args:
            x: Tokens, shape (B, n, D).
            hw_shape: Height and width of the map whose tokens, row by row,
                are the last of ``x``; what needs it says so where it is
                missing.

        Returns:
            Tensor: Shape (B, n, D).
        """

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, n, D) -> (B, h, n, d)."""
        b, n, _ = x.shape
        # No -1: a batch may be empty.
        channels = self.embed_dims // self.num_heads
        return x.reshape(b, n, self.num_heads, channels).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax attention of heads (B, h, n, d), (B, h, m, d) twice."""
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0
        )

    def project(
        self, out: Tensor, v: Tensor, hw_shape: tuple[int, int] | None
    ) -> Tensor:
        """Merge the heads, add the convolution of V, project.

        Args:
            out: Mixed values, shape (B, h, n, d).
            v: Values before, shape (B, n, D), which is that of the result.
            hw_shape: As for :meth:`forward`.
        """
        out = out.transpose(1, 2).reshape(v.shape)
        if self.dwc_v is not None:
            out = out + self._convolve(v, hw_shape)
        return self.proj_drop(self.proj(out))

    def _convolve(self, v: Tensor, hw_shape: tuple[int, int] | None) -> Tensor:
        """Convolve the map in ``v`` by depth; zero for class tokens."""
        extra, feature = split_map(v, hw_shape, 'dwc_v')
        feature = self.dwc_v(feature).flatten(2).transpose(1, 2)
        return F.pad(feature, (0, 0, extra.shape[1], 0))


def split_map(
    x: Tensor, hw_shape: tuple[int, int] | None, user: str
) -> tuple[Tensor, Tensor]:
    """Split tokens (B, n, D) into class tokens and a map.

    Returns:
        tuple[Tensor, Tensor]: The first tokens (B, n - H W, D), and the last
        as a map (B, D, H, W).

    Raises:
        ValueError: ``hw_shape`` is None or has more than n tokens; ``user``
            tells what it is for.
    """
    b, n, c = x.shape
    if hw_shape is None or hw_shape[0] * hw_shape[1] > n:
        raise ValueError(
            f'{user} needs the (height, width) of a map of at most {n} '
            f'tokens, got hw_shape={hw_shape}'
        )
    extra = n - hw_shape[0] * hw_shape[1]
    feature = x[:, extra:].transpose(1, 2).reshape(b, c, *hw_shape)
    return x[:, :extra], feature


class SelfAttention(BaseAttention):
    r"""Softmax attention :math:`softmax(Q K^\top / \sqrt d) V` (eq. 1, 2).

    The measure of anchor attention: O(n² d), by torch's fused kernels. Its
    parameters carry the names of DeiT's, ``qkv`` and ``proj``. Arguments and
    shapes are those of :class:`BaseAttention`.
    """

    input_projection = ('qkv', 3)

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        out = self.attend(*map(self.split_heads, (q, k, v)))
        return self.project(out, v, hw_shape)


# By their names in configs. The files of the other layers add theirs.
ATTENTIONS: dict[str, type[BaseAttention]] = dict(vanilla=SelfAttention)


def build_attention(
    attention: str,
    embed_dims: int,
    num_heads: int,
    num_anchors: int = 30,
    **attn_cfg,
) -> BaseAttention:
    """Build the attention layer of a block.

    Args:
        attention: One of the names in ``ATTENTIONS``.
        embed_dims: Channels D of the tokens.
        num_heads: Heads h.
        num_anchors: Anchors m, agents or clusters, of layers that have them.
        **attn_cfg: Further arguments of the layer.
    """
    check_one_of(ATTENTIONS, attention=attention)
    layer = ATTENTIONS[attention]
    anchors = (num_anchors,) if layer.has_anchors else ()
    return layer(embed_dims, num_heads, *anchors, **attn_cfg)
