"""Anchor attention: tokens attend to each other through m anchors.

AnchorFormer (arXiv 2505.16463), equations 4 and 6 to 13 and figure 3.
Notation: n tokens, m anchors, h heads of d channels, D = h * d.
"""

from abc import abstractmethod

from torch import Tensor

from anchorformer_mm.models.argument_checks import check_positive
from anchorformer_mm.models.layers.anchor_aggregate import anchor_aggregate
from anchorformer_mm.models.layers.base_attention import BaseAttention
from anchorformer_mm.models.layers.folded_anchors import (
    FoldedWeights,
    fold_keys,
    folded_attention,
    folding_pays,
)

ORDERS = ('auto', 'paper', 'folded')


class BaseAnchorAttention(BaseAttention):
    """What the two ways to obtain anchors share.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h; must divide ``embed_dims``.
        num_anchors: Anchors m, >= 1. May exceed the number of tokens.
        order: In which order the products are taken; the function and the
            weights are the same. ``'paper'``: keys and values first.
            ``'folded'``: neither (:mod:`.folded_anchors`). ``'auto'``: of
            both the one with fewer multiply-accumulates.
        **kwargs: ``dwc_v`` (which needs values, so the paper's order),
            ``qkv_bias``, ``attn_drop`` (on A where anchors are read out),
            ``proj_drop``, see :class:`BaseAttention`.

    Raises:
        ValueError: An argument is out of its range.
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
        if order not in ORDERS:
            raise ValueError(f'order must be one of {ORDERS}, got {order!r}')
        if order == 'folded' and self.dwc_v is not None:
            raise ValueError(
                "dwc_v convolves the values, which order='folded' does not "
                "make: order must be 'auto' or 'paper'"
            )
        self.num_anchors = num_anchors
        self.order = order

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
        if self.folds(x.shape[1]):
            return self._folded(x)
        k, v = self.kv(x).chunk(2, dim=-1)
        out = anchor_aggregate(
            self.logits_of(x, self.split_heads(k)),
            self.split_heads(v),
            read_drop=self.attn_drop,
        )
        return self.project(out, v, hw_shape)

    def folds(self, n: object) -> bool:
        """Whether n tokens are mixed in the folded order.

        Args:
            n: Their number; None or a symbol for however many.
        """
        if self.dwc_v is not None or self.order == 'paper':
            return False
        return self.order == 'folded' or folding_pays(
            n, self.embed_dims, self.num_heads, self.num_anchors
        )

    def folded_keys(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Anchors multiplied into the keys' projection, see fold_keys.

        Args:
            x: Tokens, shape (B, n, D), if anchors depend on them.
        """
        return fold_keys(
            self.anchors_of(x) * self.scale, *self._projection_of('k')
        )

    def _projection_of(self, part: str) -> tuple[Tensor, Tensor | None]:
        """Weight (D, D) and bias (D,) of keys or values."""
        rows = 'kv'.index(part)
        bias = self.kv.bias
        return (
            self.kv.weight.chunk(2)[rows],
            None if bias is None else bias.chunk(2)[rows],
        )

    def _folded(self, x: Tensor) -> Tensor:
        """The same as the paper's order, up to rounding."""
        out = folded_attention(
            x, self.folded_weights(x), self.num_heads, self.attn_drop
        )
        return self.proj_drop(out)

    def folded_weights(self, x: Tensor) -> FoldedWeights:
        """What the folded order multiplies tokens with.

        Args:
            x: Tokens, shape (B, n, D), if anchors depend on them.
        """
        return FoldedWeights(
            *self.folded_keys(x),
            *self._projection_of('v'),
            self.proj.weight,
            self.proj.bias,
        )
