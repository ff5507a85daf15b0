"""SHIM"""

from anchorformer_mm.models.layers.cluster_attention import (  # noqa: F401
    TokenWindows,
    ceil_div,
)
