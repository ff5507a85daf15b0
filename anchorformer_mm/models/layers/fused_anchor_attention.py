"""Anchor attention that holds its folded weights, to be deployed."""

from torch import Tensor, nn

from anchorformer_mm.models.layers.folded_anchors import (
    FoldedWeights,
    folded_attention,
)


class FusedAnchorAttention(nn.Module):
    r"""What :meth:`.AnchorAttention.fuse` makes: the same, to be evaluated.

    In the folded order (:mod:`.folded_anchors`), with the anchors multiplied
    into the keys' projection: h m x D weights in place of the keys' D x D and
    the anchors. A token costs :math:`3 h m D` multiply-accumulates, an image
    :math:`2 m D^2` besides. No dropout, no gradients.

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
            self.register_parameter(name, _fixed(weight))
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


def _fixed(weight: Tensor | None) -> nn.Parameter | None:
    if weight is None:
        return None
    return nn.Parameter(weight.detach().clone(), requires_grad=False)
