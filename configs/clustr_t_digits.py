"""ClusTR's graph on single digits, about as large as `anchorformer_t_digits`.

T is too much for the minutes of two cores: five blocks of at most 96
channels. The maps of 48 px have 144 tokens and fewer, so that the ratios are
half of ImageNet's. The rest is the AnchorFormer's.
"""

_base_ = './anchorformer_t_digits.py'

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
        out_indices=(3,),
    ),
    neck=dict(type='GlobalAveragePooling'),
)
