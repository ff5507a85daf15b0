"""PicoDet S whose last stage is AnchorFormer (T): MACS"""

_base_ = './picodet_s_coco.py'

model = dict(
    backbone=dict(
        type='anchorformer_mm.AnchorESNet',
        stage_cfg=dict(depth=2, num_anchors=30, mlp_ratio=2.0),
    )
)
