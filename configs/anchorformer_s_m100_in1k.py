"""Table 5, DeiT-S with 100 anchors."""

_base_ = './anchorformer_s_in1k.py'

model = dict(backbone=dict(num_anchors=100))
