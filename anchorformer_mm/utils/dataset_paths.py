"""SHIM"""

from anchorformer_mm.utils.files import (  # noqa: F401
    LAYOUTS,
    dataset_paths,
    require_datasets,
    split_datasets,
)
