"""Semantic-FPN with a small ClusTR on the embedded digits.

Train `clustr_t_digits.py` first, which takes minutes. The four levels go
through an FPN, as everywhere; data and schedule are the AnchorFormer's.
"""

_base_ = [
    './semfpn_anchorformer_t_digits.py',
    './_base_/models/clustr_digits.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        **_base_.clustr_digits,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/clustr_t_digits/epoch_60.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(
        _delete_=True,
        type='FPN',
        in_channels=[32, 64, 96, 96],
        out_channels=96,
        num_outs=4,
    ),
)
