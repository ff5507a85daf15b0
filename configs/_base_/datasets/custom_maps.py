"""Label maps of your own, beside their images.

Under `data_root`, which a config sets with `classes`: images/train,
images/val, and maps of the same names in masks/train and masks/val. A map is a
grey PNG with the number of a class, from 0, at each pixel, or 255 where it is
to be ignored.
"""

# Our tools hand data_root, classes and suffixes on, to data sets and heads.
custom_data = True
img_suffix = '.jpg'
seg_map_suffix = '.png'

# The longer side of an image, and the squares that are cut out to train on.
longer_side = (512, 512)
crop_size = (256, 256)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(
        type='RandomResize',
        scale=longer_side,
        ratio_range=(0.75, 1.5),
        keep_ratio=True,
    ),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=longer_side, keep_ratio=True),
    # Of the size of the file: that is what predictions are compared with.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset',
        data_prefix=dict(img_path='images/train', seg_map_path='masks/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        data_prefix=dict(img_path='images/val', seg_map_path='masks/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='anchorformer_mm.ClassIoUMetric', iou_metrics=['mIoU']
)
test_evaluator = val_evaluator
