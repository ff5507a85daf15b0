"""SHIM"""

from anchorformer_mm.analysis.complexity import (  # noqa: F401
    UncountedOperators,
    in_words,
)
