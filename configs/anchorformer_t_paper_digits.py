"""Table 4 on digits: learned anchors as the paper has them."""

_base_ = './anchorformer_t_digits.py'

model = dict(
    backbone=dict(attn_cfg=dict(_delete_=True, anchor_std=3.0, dwc_v=True))
)
