"""mmdet's YOLOX-tiny on BCCD, by its own recipe brought to 320 px.

30 epochs in batches of 8, from scratch. Its rate of 0.01 for 64 images stays
as it is: by the linear rule, 750 iterations at 1.25e-3 would be left. Warm-up
and the last epochs, with an L1 loss and without mosaic, are shortened.
"""

_base_ = [
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    './_base_/datasets/bccd.py',
]

img_scale = (320, 320)
max_epochs = 30
last_epochs = 2  # without mosaic

model = dict(
    data_preprocessor=dict(
        batch_augments=[
            dict(
                type='BatchSyncRandomResize',
                random_size_range=(256, 384),
                size_divisor=32,
                interval=10,
            )
        ]
    ),
    bbox_head=dict(num_classes=3),
)

train_pipeline = _base_.train_pipeline
train_pipeline[0].img_scale = img_scale  # Mosaic
train_pipeline[1].border = (-img_scale[0] // 2, -img_scale[1] // 2)
train_pipeline[4].scale = img_scale  # Resize
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = img_scale  # Resize

train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    drop_last=True,
    dataset=dict(pipeline=train_pipeline, dataset=_base_.bccd.train),
)
val_dataloader = dict(
    num_workers=2, dataset=dict(pipeline=test_pipeline, **_base_.bccd.val)
)
test_dataloader = dict(
    num_workers=2, dataset=dict(pipeline=test_pipeline, **_base_.bccd.test)
)
val_evaluator = _base_.bccd.val_evaluator
test_evaluator = _base_.bccd.test_evaluator

train_cfg = dict(max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=8)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 2
param_scheduler[1].update(
    begin=2,
    T_max=max_epochs - last_epochs,
    end=max_epochs - last_epochs,
)
param_scheduler[2].update(begin=max_epochs - last_epochs, end=max_epochs)
custom_hooks = _base_.custom_hooks
custom_hooks[0].num_last_epochs = last_epochs
custom_hooks.append(dict(type='anchorformer_mm.ChannelsLastHook'))
