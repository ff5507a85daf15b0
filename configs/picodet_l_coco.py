"""PicoDet L on COCO at 416 px: 3.31 M parameters, 1.83 GMAC.

Its rate of 0.3 is for 4 GPUs x 48 images.
"""

_base_ = './picodet_s_coco.py'

model = dict(
    backbone=dict(arch='1.25x'),
    neck=dict(in_channels=[160, 320, 640], out_channels=160),
    bbox_head=dict(in_channels=160, feat_channels=160, stacked_convs=4),
)

# The large model stops early on the same 300-epoch cosine.
train_cfg = dict(max_epochs=250)
train_dataloader = dict(batch_size=48)
optim_wrapper = dict(optimizer=dict(lr=0.3))
auto_scale_lr = dict(base_batch_size=192)
