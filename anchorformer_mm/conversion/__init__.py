"""Warm starts: from the weights of a ViT to those of an AnchorFormer."""

from anchorformer_mm.conversion.attention_weights import convert_attention
from anchorformer_mm.conversion.checkpoint_file import read_checkpoint
from anchorformer_mm.conversion.images import find_images, image_batches
from anchorformer_mm.conversion.inventory import Inventory
from anchorformer_mm.conversion.queries import cluster_queries, collect_queries
from anchorformer_mm.conversion.shared_anchors import (
    SharedAnchors,
    share_anchors,
)
from anchorformer_mm.conversion.target import Target, build_target
from anchorformer_mm.conversion.vit_weights import (
    ViTWeights,
    sizes_of,
    vit_weights,
)
from anchorformer_mm.conversion.warm_start import (
    WarmStart,
    vanilla_model,
    warm_start,
)

__all__ = [
    'Inventory',
    'SharedAnchors',
    'Target',
    'ViTWeights',
    'WarmStart',
    'build_target',
    'cluster_queries',
    'collect_queries',
    'convert_attention',
    'find_images',
    'image_batches',
    'read_checkpoint',
    'share_anchors',
    'sizes_of',
    'vanilla_model',
    'vit_weights',
    'warm_start',
]
