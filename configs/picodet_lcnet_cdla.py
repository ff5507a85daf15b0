"""PicoDet with LCNet 1.0x for page layout, on CDLA at 800 x 608 px.

Its rate of 0.4 is for 12 images on each GPU; for how many GPUs is not said.
"""

_base_ = './picodet_lcnet_publaynet.py'

data_root = 'data/cdla/'
metainfo = dict(
    classes=('text', 'title', 'figure', 'figure_caption', 'table')
    + ('table_caption', 'header', 'footer', 'reference', 'equation')
)
model = dict(bbox_head=dict(num_classes=10))

train_dataloader = dict(
    batch_size=12, dataset=dict(data_root=data_root, metainfo=metainfo)
)
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{data_root}val.json')
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=150)
param_scheduler = _base_.param_scheduler
param_scheduler[1].T_max = 150
auto_scale_lr = dict(base_batch_size=48)
