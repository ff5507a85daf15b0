"""The ideas of the papers as layers; they know no registry."""

from anchorformer_mm.models.layers.anchor_aggregate import anchor_aggregate
from anchorformer_mm.models.layers.anchor_attention import AnchorAttention
from anchorformer_mm.models.layers.attention import build_attention
from anchorformer_mm.models.layers.base_anchor_attention import (
    BaseAnchorAttention,
)
from anchorformer_mm.models.layers.base_attention import BaseAttention
from anchorformer_mm.models.layers.cluster_attention import ClusterAttention
from anchorformer_mm.models.layers.conv_ffn import ConvFFN
from anchorformer_mm.models.layers.fused_anchor_attention import (
    FusedAnchorAttention,
)
from anchorformer_mm.models.layers.position_embedding import (
    fit_position_embedding,
    resize_position_embedding,
)
from anchorformer_mm.models.layers.query_anchor_attention import (
    QueryAnchorAttention,
)
from anchorformer_mm.models.layers.self_attention import SelfAttention
from anchorformer_mm.models.layers.squeeze_excite import SqueezeExcite
from anchorformer_mm.models.layers.token_clustering import (
    dpc_knn,
    merge_tokens,
)
from anchorformer_mm.models.layers.token_windows import TokenWindows
from anchorformer_mm.models.layers.transformer_block import TransformerBlock

__all__ = [
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
