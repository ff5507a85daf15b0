"""ClusTR's graph on single digits, about as large as `anchorformer_t_digits`.

T is too much for the minutes of two cores: five blocks of at most 96
channels. The rest is the AnchorFormer's.
"""

_base_ = ['./anchorformer_t_digits.py', './_base_/models/clustr_digits.py']

model = dict(
    backbone=dict(_delete_=True, out_indices=(3,), **_base_.clustr_digits),
    neck=dict(type='GlobalAveragePooling'),
)
