"""mmdet's RTMDet-tiny on BCCD, by its own recipe brought to 320 px.

30 epochs in batches of 8, from scratch. Its rate of 4e-3 for 256 images stays
as it is: by the linear rule, 750 iterations at 1.25e-4 would be left. Warm-up,
the flat first half and the last epochs without mosaic are shortened.
"""

_base_ = [
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    './_base_/datasets/bccd.py',
]

max_epochs = 30
last_epochs = 2  # without mosaic

model = dict(backbone=dict(init_cfg=None), bbox_head=dict(num_classes=3))

# Each size is half of the original's.
train_pipeline = _base_.train_pipeline
train_pipeline[2].img_scale = (320, 320)  # CachedMosaic
train_pipeline[3].scale = (640, 640)  # RandomResize
train_pipeline[4].crop_size = (320, 320)  # RandomCrop
train_pipeline[7].size = (320, 320)  # Pad
train_pipeline[8].img_scale = (320, 320)  # CachedMixUp
last_pipeline = _base_.train_pipeline_stage2
last_pipeline[2].scale = (320, 320)  # RandomResize
last_pipeline[3].crop_size = (320, 320)  # RandomCrop
last_pipeline[6].size = (320, 320)  # Pad
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (320, 320)  # Resize
test_pipeline[2].size = (320, 320)  # Pad

train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    drop_last=True,
    dataset=dict(pipeline=train_pipeline, **_base_.bccd.train),
)
val_dataloader = dict(
    num_workers=2, dataset=dict(pipeline=test_pipeline, **_base_.bccd.val)
)
test_dataloader = dict(
    num_workers=2, dataset=dict(pipeline=test_pipeline, **_base_.bccd.test)
)
val_evaluator = _base_.bccd.val_evaluator
test_evaluator = _base_.bccd.test_evaluator

train_cfg = dict(max_epochs=max_epochs, dynamic_intervals=None)
auto_scale_lr = dict(base_batch_size=8)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 50
param_scheduler[1].update(
    begin=max_epochs // 2, end=max_epochs, T_max=max_epochs // 2
)
custom_hooks = _base_.custom_hooks
custom_hooks[1].update(
    switch_epoch=max_epochs - last_epochs, switch_pipeline=last_pipeline
)
custom_hooks.append(dict(type='anchorformer_mm.ChannelsLastHook'))
