"""PicoDet v2 S whose backbone is AnchorESNet T: 3.13 M, 1.11 GMAC.

Its rate of 0.24 is for 4 GPUs x 48 images.
"""

_base_ = './picodet_v2_s_coco.py'

model = dict(
    backbone=dict(
        type='anchorformer_mm.AnchorESNet',
        stage_cfg=dict(depth=2, num_anchors=30, mlp_ratio=2.0),
    ),
)
