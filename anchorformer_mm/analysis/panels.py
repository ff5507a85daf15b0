"""SHIM"""

from anchorformer_mm.analysis.pictures import (  # noqa: F401
    SWATCH,
    LegendEntry,
    Panel,
    cell_size,
    draw_panels,
    fit,
)
