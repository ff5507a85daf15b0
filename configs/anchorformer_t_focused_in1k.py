"""DeiT-T with focused linear attention (arXiv 2308.00442)."""

_base_ = './anchorformer_t_in1k.py'

model = dict(backbone=dict(attention='focused'))
