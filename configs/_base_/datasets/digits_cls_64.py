"""The embedded data set as single digits of 64 px, a folder for each class."""

data_root = 'data/digits/classification'
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
    )
)
data_preprocessor = dict(
    num_classes=10,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)

# A digit keeps its meaning when it is moved, turned, sheared a little or
# inverted, and loses it when it is mirrored.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Rotate', angle=15, prob=0.5, pad_val=128),
    dict(type='Translate', magnitude=0.1, prob=0.5, pad_val=128),
    dict(
        type='Translate',
        magnitude=0.1,
        direction='vertical',
        prob=0.5,
        pad_val=128,
    ),
    dict(type='Shear', magnitude=0.2, prob=0.5, pad_val=128),
    dict(type='Invert', prob=0.5),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64)),
    dict(type='PackInputs'),
]

# Loading takes a small part of a step: a worker would fight for the cores.
loading = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **loading,
    batch_size=16,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        metainfo=metainfo,
        ann_file='meta/train.txt',
        data_prefix='train',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    **loading,
    batch_size=128,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        metainfo=metainfo,
        ann_file='meta/val.txt',
        data_prefix='val',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
