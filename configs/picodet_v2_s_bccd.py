"""PicoDet v2 S on BCCD at 320 px, 30 epochs in batches of 8."""

_base_ = [
    './_base_/models/picodet_v2.py',
    './_base_/datasets/bccd_320.py',
    './_base_/schedules/picodet_small_data.py',
    './_base_/det_runtime.py',
]

model = dict(
    bbox_head=dict(num_classes=3),
    # A third of all epochs, as for COCO.
    train_cfg=dict(initial_epoch=10),
)
