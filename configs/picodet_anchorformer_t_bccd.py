"""AnchorFormer T on BCCD at 320 px, 30 epochs in batches of 8."""

_base_ = [
    './_base_/models/picodet.py',
    './_base_/datasets/bccd_320.py',
    './_base_/schedules/picodet_small_data.py',
    './_base_/det_runtime.py',
]

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
    ),
    bbox_head=dict(num_classes=3),
)
