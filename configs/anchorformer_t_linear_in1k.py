"""DeiT-T with linear attention of ReLU features (arXiv 2205.14756)."""

_base_ = './anchorformer_t_in1k.py'

model = dict(backbone=dict(attention='linear'))
