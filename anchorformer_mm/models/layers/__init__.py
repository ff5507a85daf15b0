"""The ideas of the papers as layers; they know no registry."""

from anchorformer_mm.models.layers.anchor_attention import (
    AnchorAttention,
    BaseAnchorAttention,
    QueryAnchorAttention,
    anchor_aggregate,
)
from anchorformer_mm.models.layers.attention import build_attention
from anchorformer_mm.models.layers.base_attention import BaseAttention
from anchorformer_mm.models.layers.position_embedding import (
    fit_position_embedding,
    resize_position_embedding,
)
from anchorformer_mm.models.layers.self_attention import SelfAttention
from anchorformer_mm.models.layers.squeeze_excite import SqueezeExcite
from anchorformer_mm.models.layers.transformer_block import TransformerBlock

__all__ = [
    'AnchorAttention',
    'BaseAnchorAttention',
    'BaseAttention',
    'QueryAnchorAttention',
    'SelfAttention',
    'SqueezeExcite',
    'TransformerBlock',
    'anchor_aggregate',
    'build_attention',
    'fit_position_embedding',
    'resize_position_embedding',
]
