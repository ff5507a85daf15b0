"""SHIM"""

from anchorformer_mm.analysis.pictures import (  # noqa: F401
    class_legend,
    colour_labels,
    hatching,
)
