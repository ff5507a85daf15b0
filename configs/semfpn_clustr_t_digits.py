"""Semantic-FPN with a small ClusTR on the embedded digits.

Train `clustr_t_digits.py` first, which takes minutes. The four levels go
through an FPN, as everywhere; data and schedule are the AnchorFormer's.
"""

_base_ = './semfpn_anchorformer_t_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='anchorformer_mm.ClusTR',
        arch=dict(
            embed_dims=(32, 64, 96, 96),
            num_heads=(1, 2, 3, 3),
            num_layers=(1, 1, 2, 1),
            mlp_ratios=(2, 2, 2, 2),
        ),
        sr_ratios=(4, 2, 1, 1),
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
