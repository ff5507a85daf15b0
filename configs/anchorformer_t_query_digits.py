"""Table 4 on digits: anchors picked among the queries."""

_base_ = './anchorformer_t_digits.py'

model = dict(
    backbone=dict(attention='query', attn_cfg=dict(_delete_=True, dwc_v=True))
)
