"""PicoDet v2 with AnchorFormer T on BCCD at 320 px, 30 epochs of 8."""

_base_ = './picodet_v2_s_bccd.py'

model = dict(
    backbone=dict(
        type='anchorformer_mm.AnchorESNet',
        stage_cfg=dict(
            depth=2,
            num_anchors=30,
            mlp_ratio=2.0,
            # Not the paper's; they learn from little data, see docs/models.md.
            tied=False,
            logits='standardized',
            logit_scale=2.0,
        ),
    )
)
