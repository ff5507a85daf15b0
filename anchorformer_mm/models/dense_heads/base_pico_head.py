"""SHIM"""

from anchorformer_mm.models.dense_heads.pico_head import (  # noqa: F401
    BasePicoHead,
    flatten_levels,
)
