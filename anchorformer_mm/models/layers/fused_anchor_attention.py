"""Anchor attention that holds its folded weights, to be deployed."""

import torch
from torch import Tensor, nn

from anchorformer_mm.models.layers.anchor_attention import AnchorAttention
from anchorformer_mm.models.layers.folded_anchors import (
    FoldedWeights,
    folded_attention,
)


class FusedAnchorAttention(nn.Module):
    r"""The function of an :class:`AnchorAttention` in evaluation.

    In the folded order (:mod:`.folded_anchors`), with the anchors multiplied
    into the keys' projection, h m x D weights in place of the keys' D x D and
    the anchors. Rows of A sum to one, so what a bias of the values adds is a
    constant, and becomes part of the output's bias. A token costs
    :math:`3 h m D` multiply-accumulates, an image :math:`2 m D^2` besides. No
    dropout, no gradients.

    Args:
        attn: Layer with learned anchors and no convolution of values; it is
            not changed.

    Raises:
        ValueError: It has a convolution of values.

    Shape:
        - Input: (B, n, D); output: (B, n, D).
    """

    def __init__(self, attn: AnchorAttention) -> None:
        super().__init__()
        if attn.dwc_v is not None:
            raise ValueError(
                'a layer with dwc_v cannot be fused: it convolves the values'
            )
        self.embed_dims = attn.embed_dims
        self.num_heads = attn.num_heads
        self.num_anchors = attn.num_anchors
        with torch.no_grad():
            weight, bias = attn.folded_keys(attn.kv.weight)
            value, value_bias = attn.projection_of('v')
            out_bias = attn.proj.bias
            if value_bias is not None:
                out_bias = out_bias + attn.proj.weight @ value_bias
        self.logit_weight = _fixed(weight)
        self.logit_bias = None if bias is None else _fixed(bias)
        self.value_weight = _fixed(value)
        self.out_weight = _fixed(attn.proj.weight)
        self.out_bias = _fixed(out_bias)
        self.eval()

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        """Mix the tokens through the anchors.

        Args:
            x: Tokens, shape (B, n, D).
            hw_shape: Without effect, as for the layer that this was.

        Returns:
            Tensor: Shape (B, n, D).
        """
        weights = FoldedWeights(
            self.logit_weight,
            self.logit_bias,
            self.value_weight,
            None,
            self.out_weight,
            self.out_bias,
        )
        return folded_attention(x, weights, self.num_heads)


def _fixed(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone(), requires_grad=False)
