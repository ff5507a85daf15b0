"""AnchorFormer S on your own COCO files: here BCCD, 364 blood cell photos.

Change data_root, classes and file names; one GPU or a CPU will do. The data
is github.com/Shenggan/BCCD_Dataset (MIT licence) with its annotations as COCO.
"""

_base_ = './picodet_anchorformer_s_coco.py'

data_root = 'data/bccd/'
classes = ('RBC', 'WBC', 'Platelets')

data = dict(
    data_root=data_root,
    metainfo=dict(classes=classes),
    data_prefix=dict(img='images/'),
)
train_dataloader = dict(
    batch_size=8, num_workers=2, dataset=dict(ann_file='train.json', **data)
)
val_dataloader = dict(num_workers=2, dataset=dict(ann_file='val.json', **data))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = val_evaluator
model = dict(bbox_head=dict(num_classes=len(classes)))

# 25 iterations an epoch: the recipe for COCO would hardly leave its warm-up.
max_epochs = 60
train_cfg = dict(max_epochs=max_epochs, val_interval=10)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=4e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10),
)
auto_scale_lr = dict(base_batch_size=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        begin=0,
        end=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
# The average over a few hundred iterations needs a shorter memory.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.002,
        gamma=100,
        update_buffers=True,
        priority=49,
    ),
    dict(type='anchorformer_mm.ChannelsLastHook'),
]
