"""SHIM"""

from anchorformer_mm.apis import (  # noqa: F401
    PreparedImage,
    dataset_meta,
    image_pipeline,
    load_model,
    prepare_image,
    prepare_with,
    require_image,
    to_rgb,
)
