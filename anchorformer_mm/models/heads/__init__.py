"""What distillation adds to mmpretrain's heads; importing it needs it."""

from anchorformer_mm.models.heads.distilled_heads import (
    DistilledDeiTClsHead,
    DistilledLeViTClsHead,
    HardDistillation,
)

__all__ = [
    'DistilledDeiTClsHead',
    'DistilledLeViTClsHead',
    'HardDistillation',
]
