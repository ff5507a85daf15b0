"""The embedded data set: handwritten digits on textured 192 px scenes."""

_base_ = './coco_416.py'

data_root = 'data/digits/'
metainfo = dict(
    classes=(
        'zero',
        'one',
        'two',
        'three',
        'four',
        'five',
        'six',
        'seven',
        'eight',
        'nine',
    ),
    palette=[
        (220, 20, 60),
        (0, 128, 255),
        (60, 179, 60),
        (255, 165, 0),
        (148, 0, 211),
        (0, 206, 209),
        (255, 105, 180),
        (154, 205, 50),
        (139, 69, 19),
        (112, 128, 144),
    ],
)

# Digits are not mirrored, and scenes are small: no flip, no crop.
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(192, 192), keep_ratio=False),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(192, 192), keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]

# Loading takes a tenth of a step: a worker would only fight for the cores.
loading = dict(batch_size=8, num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **loading,
    # The pipeline has resized every scene alike.
    collate_fn=dict(_delete_=True, type='pseudo_collate'),
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    **loading,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator
