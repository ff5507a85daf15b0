"""DeiT-T with attention to 30 clusters of patches (arXiv 2203.11987)."""

_base_ = './anchorformer_t_in1k.py'

model = dict(backbone=dict(attention='paca'))
