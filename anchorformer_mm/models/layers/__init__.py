"""Layers of the papers: torch and mmcv.cnn only, no registry.

Arguments out of their range raise a ValueError with name and value.
"""

from anchorformer_mm.models.layers.anchor_attention import (
    AnchorAttention,
    BaseAnchorAttention,
    FusedAnchorAttention,
    QueryAnchorAttention,
    anchor_aggregate,
)
from anchorformer_mm.models.layers.attention import (
    ATTENTIONS,
    BaseAttention,
    SelfAttention,
    build_attention,
)
from anchorformer_mm.models.layers.cluster_attention import (
    ClusterAttention,
    TokenWindows,
    dpc_knn,
    merge_tokens,
)
from anchorformer_mm.models.layers.efficient_attentions import (
    AgentAttention,
    CastlingAttention,
    FocusedAttention,
    LinearAttention,
    PaCaAttention,
    PoolAttention,
)
from anchorformer_mm.models.layers.transformer_block import (
    ConvFFN,
    SqueezeExcite,
    TransformerBlock,
    fit_position_embedding,
    resize_position_embedding,
)

__all__ = [
    'ATTENTIONS',
    'AgentAttention',
    'CastlingAttention',
    'FocusedAttention',
    'LinearAttention',
    'PaCaAttention',
    'PoolAttention',
    'AnchorAttention',
    'BaseAnchorAttention',
    'BaseAttention',
    'ClusterAttention',
    'ConvFFN',
    'FusedAnchorAttention',
    'QueryAnchorAttention',
    'SelfAttention',
    'SqueezeExcite',
    'TokenWindows',
    'TransformerBlock',
    'anchor_aggregate',
    'build_attention',
    'dpc_knn',
    'fit_position_embedding',
    'merge_tokens',
    'resize_position_embedding',
]
