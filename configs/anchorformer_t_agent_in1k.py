"""DeiT-T with Agent Attention (arXiv 2312.08874), of 5 x 6 agents."""

_base_ = './anchorformer_t_in1k.py'

model = dict(backbone=dict(attention='agent'))
