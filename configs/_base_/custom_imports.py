"""Import the plugin with the config."""

# Types carry their scope and need no import. This one lets the original
# mmengine read its own checkpoints on torch >= 2.6 wherever the config is
# loaded first, as DetInferencer does.
custom_imports = dict(
    imports=['anchorformer_mm.registry'], allow_failed_imports=False
)
