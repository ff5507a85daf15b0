"""PicoDet AnchorFormer S with anchors that the paper does not have.

Untied and standardized, see docs/models.md; 5.47 M. Nobody has trained it.
"""

_base_ = './picodet_anchorformer_s_coco.py'

model = dict(
    backbone=dict(
        stage_cfg=dict(tied=False, logits='standardized', logit_scale=2.0)
    )
)
