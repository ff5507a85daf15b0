"""mmdet's runtime; keeps the best checkpoint and the last three."""

_base_ = [
    'mmdet::_base_/default_runtime.py',
    './custom_imports.py',
]

default_hooks = dict(
    checkpoint=dict(interval=10, max_keep_ckpts=3, save_best='coco/bbox_mAP'),
)
