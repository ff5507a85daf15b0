"""Anchor attention with learned anchors (AnchorFormer, figure 3b)."""

import torch
from torch import Tensor, nn

from anchorformer_mm.models.argument_checks import check_above_zero
from anchorformer_mm.models.layers.base_anchor_attention import (
    BaseAnchorAttention,
)
from anchorformer_mm.models.layers.fused_anchor_attention import (
    FusedAnchorAttention,
)


class AnchorAttention(BaseAnchorAttention):
    r"""Anchor attention with learned anchors (eq. 13, figure 3b).

    The anchors are weights; there is no query projection at all. A token costs
    :math:`3 D^2 + 3 m D` multiply-accumulates in the paper's order and
    :math:`3 h m D` in the folded one: linear in their number. Evaluated
    without gradients, the folded order multiplies its weights once, and again
    when they change.

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
        **kwargs: ``order``, ``dwc_v``, ``qkv_bias``, ``attn_drop``,
            ``proj_drop``, see :class:`BaseAnchorAttention`.

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
        check_above_zero(anchor_std=anchor_std)
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
        # What the weights were, and their product.
        self._made: tuple[list, tuple[Tensor, Tensor | None]] | None = None

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
        self._made = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> 'AnchorAttention':
        """Also forget the product: averages are swapped in without a trace."""
        self._made = None
        return super().train(mode)

    def _apply(self, *args, **kwargs) -> 'AnchorAttention':
        self._made = None
        return super()._apply(*args, **kwargs)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """The same function with folded weights only, for evaluation.

        Returns:
            nn.Module: A :class:`.FusedAnchorAttention`; or this layer itself,
            if it convolves values, or if the paper's order is cheaper for
            however many tokens.
        """
        # Of however many tokens: of no number that could be compared.
        if not self.folds(None):
            return self
        weights = self.folded_weights(self.kv.weight)
        return FusedAnchorAttention(weights, self.num_heads)

    def folded_keys(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Anchors multiplied into the keys' projection, see fold_keys."""
        weights = [self.anchors, *self.kv.parameters()]
        if (
            self.training
            or torch.is_grad_enabled()
            # Counted on fake tensors, for one.
            or type(x) is not Tensor
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or any(w.is_inference() for w in weights)
        ):
            return super().folded_keys(x)
        state = [(id(w), w._version, w.data_ptr(), w.dtype) for w in weights]
        if self._made is None or self._made[0] != state:
            made = super().folded_keys(x)
            if made[0].dtype != self.kv.weight.dtype:
                # Autocast's: of no use outside it.
                return made
            self._made = state, made
        return self._made[1]

    def anchors_of(self, x: Tensor) -> Tensor:
        """The learned anchors, shape (1, 1 or h, m, d), for any ``x``."""
        return self.anchors.unsqueeze(0)
