"""COCO 2017 in mmdet's layout, at 416 x 416, with PicoDet's data settings.

A child for another resolution overrides `train_dataloader.collate_fn.sizes`
(five squares, 32 px apart, around its own) and the test pipeline's scale.
"""

_base_ = 'mmdet::_base_/datasets/coco_detection.py'

img_scale = (416, 416)

train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='anchorformer_mm.MaxIoURandomCrop'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='anchorformer_mm.MultiplicativeColorDistortion'),
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
    # One size and one interpolation for a batch, drawn in the workers.
    collate_fn=dict(
        type='anchorformer_mm.random_square_collate',
        sizes=[352, 384, 416, 448, 480],
    ),
    dataset=dict(
        filter_cfg=dict(filter_empty_gt=True, min_size=0),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8, num_workers=4, dataset=dict(pipeline=test_pipeline)
)
test_dataloader = val_dataloader
