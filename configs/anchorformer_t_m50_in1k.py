"""Table 5, DeiT-T with 50 anchors."""

_base_ = './anchorformer_t_in1k.py'

model = dict(backbone=dict(num_anchors=50))
