"""Table 4 on digits: vanilla attention."""

_base_ = './anchorformer_t_digits.py'

model = dict(
    backbone=dict(
        attention='vanilla', attn_cfg=dict(_delete_=True, dwc_v=True)
    )
)
