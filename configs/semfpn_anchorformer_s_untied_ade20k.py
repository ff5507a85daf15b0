"""Semantic-FPN on AnchorFormer S with anchors that the paper does not have.

Untied and standardized, see docs/models.md. Nobody has trained it.
"""

_base_ = './semfpn_anchorformer_s_ade20k.py'

model = dict(
    backbone=dict(
        attn_cfg=dict(tied=False, logits='standardized', logit_scale=2.0)
    )
)
