"""Table 4, first row: vanilla attention, which is DeiT-T."""

_base_ = './anchorformer_t_in1k.py'

model = dict(backbone=dict(attention='vanilla'))
