"""DeiT-T with linear-angular attention (arXiv 2211.10526)."""

_base_ = './anchorformer_t_in1k.py'

model = dict(backbone=dict(attention='castling'))
