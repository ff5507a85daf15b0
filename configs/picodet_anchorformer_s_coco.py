"""PicoDet M whose last stage is AnchorFormer (S): MACS"""

_base_ = './picodet_m_coco.py'

model = dict(
    backbone=dict(
        type='anchorformer_mm.AnchorESNet',
        stage_cfg=dict(depth=2, num_anchors=30, mlp_ratio=2.0),
    )
)
