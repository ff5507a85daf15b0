"""Schedules that mmengine does not have."""

from anchorformer_mm.engine.schedulers.cosine_after_warmup import (
    CosineAfterWarmupLR,
)

__all__ = ['CosineAfterWarmupLR']
