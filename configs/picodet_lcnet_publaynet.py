"""PicoDet with LCNet 1.0x for page layout, on PubLayNet at 800 x 608 px.

1.79 M parameters, 3.30 GMAC; 608 px are the width.

Its rate of 0.4 is for 24 images on each GPU; for how many GPUs is not said.
"""

_base_ = './picodet_m_coco.py'

data_root = 'data/publaynet/'
metainfo = dict(classes=('text', 'title', 'list', 'table', 'figure'))
model = dict(
    backbone=dict(type='anchorformer_mm.LCNet'),
    bbox_head=dict(num_classes=5),
)

test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (608, 800)  # width, height
train_dataloader = dict(
    batch_size=24,
    # Height, width.
    collate_fn=dict(sizes=[[768, 576], [800, 608], [832, 640]]),
    dataset=dict(
        data_root=data_root,
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        metainfo=metainfo,
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='val.json',
        data_prefix=dict(img='val/'),
        metainfo=metainfo,
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{data_root}val.json')
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=100, val_interval=1)
param_scheduler = _base_.param_scheduler
param_scheduler[1].T_max = 100
custom_hooks = _base_.custom_hooks
custom_hooks[0].cycle_epochs = 10
auto_scale_lr = dict(base_batch_size=96)
