"""PicoDet v2 L whose backbone is AnchorESNet B: 8.97 M, 3.19 GMAC.

Its rate of 0.12 is for 4 GPUs x 24 images.
"""

_base_ = './picodet_v2_l_coco.py'

model = dict(
    backbone=dict(
        type='anchorformer_mm.AnchorESNet',
        arch='1.25x',
        stage_cfg=dict(depth=2, num_anchors=30, mlp_ratio=2.0),
    ),
    neck=dict(in_channels=[160, 320, 640]),
)
