"""DeiT-T with PoolFormer's pooling as attention (arXiv 2111.11418)."""

_base_ = './anchorformer_t_in1k.py'

model = dict(backbone=dict(attention='pool'))
