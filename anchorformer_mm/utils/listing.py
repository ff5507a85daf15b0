"""SHIM"""

from anchorformer_mm.utils.text import listing  # noqa: F401
