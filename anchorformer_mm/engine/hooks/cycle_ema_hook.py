"""SHIM"""

from anchorformer_mm.engine.picodet_schedule import (  # noqa: F401
    CycleEMAHook,
)
