"""The digits' Semantic-FPN with vanilla attention, for comparison."""

_base_ = './semfpn_anchorformer_t_digits.py'

model = dict(
    backbone=dict(
        attention='vanilla',
        init_cfg=dict(
            checkpoint='work_dirs/anchorformer_t_vanilla_digits/epoch_60.pth'
        ),
    )
)
