"""AnchorFormer S on BCCD at 320 px, 30 epochs in batches of 8."""

_base_ = './picodet_anchorformer_t_bccd.py'

model = dict(
    backbone=dict(arch='1.0x'),
    neck=dict(in_channels=[128, 256, 512], out_channels=128),
    bbox_head=dict(in_channels=128, feat_channels=128, stacked_convs=4),
)
