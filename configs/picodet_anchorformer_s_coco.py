"""PicoDet M whose last stage is AnchorFormer (S): 5.44 M, 1.80 GMAC.

Its rate of 0.4 is for 4 GPUs x 80 images.
"""

_base_ = './picodet_m_coco.py'

model = dict(
    backbone=dict(
        type='anchorformer_mm.AnchorESNet',
        stage_cfg=dict(depth=2, num_anchors=30, mlp_ratio=2.0),
    )
)
