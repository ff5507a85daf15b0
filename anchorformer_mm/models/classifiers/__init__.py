"""SHIM"""

from anchorformer_mm.models.distillation import (  # noqa: F401
    DistilledImageClassifier,
)
