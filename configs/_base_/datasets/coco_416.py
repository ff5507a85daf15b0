"""COCO 2017 in mmdet's layout, at an exact 416 x 416, as PicoDet has it.

Stands in for the original's data pipeline with what mmdet has:
MinIoURandomCrop bounds the least overlap where the original bounds the
largest, and PhotoMetricDistortion adds brightness where it multiplies.
"""

_base_ = 'mmdet::_base_/datasets/coco_detection.py'

img_scale = (416, 416)

train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='MinIoURandomCrop',
        min_ious=(0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size=0.3,
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='Resize', scale=img_scale, keep_ratio=False),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(
        type='Resize',
        scale=img_scale,
        keep_ratio=False,
        interpolation='bicubic',
    ),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]

train_dataloader = dict(
    batch_size=80,
    num_workers=8,
    drop_last=True,
    batch_sampler=None,
    dataset=dict(
        filter_cfg=dict(filter_empty_gt=True, min_size=0),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8, num_workers=4, dataset=dict(pipeline=test_pipeline)
)
test_dataloader = val_dataloader
