"""SHIM"""

from anchorformer_mm.engine.layer_decay import (  # noqa: F401
    LayerDecayOptimWrapperConstructor,
)
