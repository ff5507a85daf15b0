"""PicoDet L whose last stage is AnchorFormer (B): 8.44 M, 2.75 GMAC.

Its rate of 0.3 is for 4 GPUs x 48 images.
"""

_base_ = './picodet_l_coco.py'

model = dict(
    backbone=dict(
        type='anchorformer_mm.AnchorESNet',
        stage_cfg=dict(depth=2, num_anchors=30, mlp_ratio=2.0),
    )
)
