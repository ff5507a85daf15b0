"""The embedded data set as label maps: background and ten digits, 192 px."""

data_root = 'data/digits/'
metainfo = dict(
    classes=(
        'background',
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
        (0, 0, 0),
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

# Digits are not mirrored: no flip. Crops that are mostly background are drawn
# again, up to ten times.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=(128, 128), cat_max_ratio=0.8),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

# Loading takes a tenth of a step: a worker would only fight for the cores.
loading = dict(num_workers=0, persistent_workers=False)
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=metainfo,
    img_suffix='.jpg',
    seg_map_suffix='.png',
)
train_dataloader = dict(
    **loading,
    batch_size=4,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='train', seg_map_path='semantic/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    **loading,
    batch_size=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='val', seg_map_path='semantic/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
