"""Optimiser settings that mmengine does not have."""

from anchorformer_mm.engine.optimizers.layer_decay import (
    LayerDecayOptimWrapperConstructor,
)

__all__ = ['LayerDecayOptimWrapperConstructor']
