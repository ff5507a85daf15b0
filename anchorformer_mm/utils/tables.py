"""SHIM"""

from anchorformer_mm.utils.text import markdown_table  # noqa: F401
