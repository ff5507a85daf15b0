"""SHIM"""

from anchorformer_mm.models.layers.cluster_attention import (  # noqa: F401
    dpc_knn,
    merge_tokens,
)
