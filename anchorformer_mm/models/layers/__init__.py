"""The ideas of the papers as layers; they know no registry."""

from anchorformer_mm.models.layers.anchor_attention import (
    AnchorAttention,
    QueryAnchorAttention,
    anchor_aggregate,
)
from anchorformer_mm.models.layers.transformer_block import TransformerBlock

__all__ = [
    'AnchorAttention',
    'QueryAnchorAttention',
    'TransformerBlock',
    'anchor_aggregate',
]
