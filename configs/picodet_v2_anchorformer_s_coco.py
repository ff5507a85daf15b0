"""PicoDet v2 M whose backbone is AnchorESNet S: 5.80 M, 2.09 GMAC.

Its rate of 0.24 is for 4 GPUs x 48 images.
"""

_base_ = './picodet_v2_m_coco.py'

model = dict(
    backbone=dict(
        type='anchorformer_mm.AnchorESNet',
        arch='1.0x',
        stage_cfg=dict(depth=2, num_anchors=30, mlp_ratio=2.0),
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
