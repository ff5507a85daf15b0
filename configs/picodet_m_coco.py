"""PicoDet M on COCO at 416 px: 2.15 M parameters, 1.21 GMAC.

Its rate of 0.4 is for 4 GPUs x 80 images.
"""

_base_ = './picodet_s_coco.py'

model = dict(
    backbone=dict(arch='1.0x'),
    neck=dict(in_channels=[128, 256, 512], out_channels=128),
    bbox_head=dict(in_channels=128, feat_channels=128, stacked_convs=4),
)
