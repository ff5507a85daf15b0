"""SHIM"""

from anchorformer_mm.models.necks.token_pyramid import (  # noqa: F401
    TokenPyramid,
)
