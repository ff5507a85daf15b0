"""SHIM"""

from anchorformer_mm.models.dense_heads import (  # noqa: F401
    ActivatedVarifocalLoss,
)
