"""PicoDet v2 L on COCO at 416 px: 5.80 M parameters, 3.53 GMAC.

Its rate of 0.12 is for 4 GPUs x 24 images.
"""

_base_ = './picodet_v2_s_coco.py'

model = dict(
    backbone=dict(arch='2.0x'),
    neck=dict(in_channels=[256, 512, 1024], out_channels=160),
    bbox_head=dict(in_channels=160, feat_channels=160, stacked_convs=4),
)

# It stops early on the same 300-epoch cosine.
train_cfg = dict(max_epochs=250)
train_dataloader = dict(batch_size=24)
optim_wrapper = dict(optimizer=dict(lr=0.12))
auto_scale_lr = dict(base_batch_size=96)
