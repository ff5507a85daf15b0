"""AnchorFormer S distilled as DeiT is, the graph of the release: MACS_sd"""

_base_ = './anchorformer_t_distilled_in1k.py'

model = dict(backbone=dict(arch='small'), head=dict(in_channels=384))
