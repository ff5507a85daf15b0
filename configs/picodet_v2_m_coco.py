"""PicoDet v2 M on COCO at 416 px: 3.47 M parameters, 2.15 GMAC.

Its rate of 0.24 is for 4 GPUs x 48 images.
"""

_base_ = './picodet_v2_s_coco.py'

model = dict(
    backbone=dict(arch='1.5x'),
    neck=dict(in_channels=[192, 384, 768], out_channels=128),
    bbox_head=dict(in_channels=128, feat_channels=128, stacked_convs=4),
)

# It stops early on the same 300-epoch cosine.
train_cfg = dict(max_epochs=250)
