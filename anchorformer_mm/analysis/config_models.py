"""SHIM"""

from anchorformer_mm.apis import config_path, read_config  # noqa: F401
