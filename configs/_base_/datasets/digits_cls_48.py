"""The embedded data set as single digits of 48 px, a folder a class."""

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

# Colours say nothing about a digit: grey, and stretched from black to white.
grey = [
    dict(type='RandomGrayscale', prob=1.0, keep_channels=True),
    dict(type='AutoContrast', prob=1.0),
]
# A digit keeps its meaning when it is moved or turned a little or inverted,
# and loses it when it is mirrored.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(48, 48)),
    *grey,
    dict(type='Rotate', magnitude_range=(0, 10), magnitude_std='inf'),
    dict(type='RandomCrop', crop_size=48, padding=2, padding_mode='reflect'),
    dict(type='Invert', prob=0.5),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(48, 48)),
    *grey,
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
