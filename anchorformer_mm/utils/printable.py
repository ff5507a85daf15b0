"""SHIM"""

from anchorformer_mm.utils.text import printable  # noqa: F401
