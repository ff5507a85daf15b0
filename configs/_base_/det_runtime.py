"""mmdet's runtime; keeps the best checkpoint and the last three."""

_base_ = 'mmdet::_base_/default_runtime.py'

# Types carry their scope and need no import. This one lets the original
# mmengine read its own checkpoints on torch >= 2.6 wherever the config is
# loaded first, as DetInferencer does.
custom_imports = dict(
    imports=['anchorformer_mm.registry'], allow_failed_imports=False
)

default_hooks = dict(
    checkpoint=dict(interval=10, max_keep_ckpts=3, save_best='coco/bbox_mAP'),
)
