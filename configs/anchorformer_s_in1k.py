"""AnchorFormer S on ImageNet, in DeiT's recipe of 300 epochs.

20.29 M, 3.97 GMAC at 224 px with 1,000 classes.
"""

_base_ = './anchorformer_t_in1k.py'

model = dict(backbone=dict(arch='small'), head=dict(in_channels=384))
