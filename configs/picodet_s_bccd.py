"""PicoDet S on BCCD: the same budget as its AnchorFormer neighbour."""

_base_ = './picodet_anchorformer_s_bccd.py'

model = dict(
    backbone=dict(_delete_=True, type='anchorformer_mm.ESNet', arch='0.75x'),
    neck=dict(in_channels=[96, 192, 384], out_channels=96),
    bbox_head=dict(in_channels=96, feat_channels=96, stacked_convs=2),
)
