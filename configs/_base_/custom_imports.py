"""For configs that take their runtime from a library."""

# See det_runtime.py.
custom_imports = dict(
    imports=['anchorformer_mm.registry'], allow_failed_imports=False
)
