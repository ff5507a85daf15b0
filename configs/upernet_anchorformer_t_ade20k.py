"""UperNet with AnchorFormer T on ADE20K.

33.35 M, 866.9 GMAC at 512 x 2048 with 150 classes.
"""

_base_ = './upernet_anchorformer_s_ade20k.py'

model = dict(
    backbone=dict(arch='tiny'),
    neck=dict(embed_dims=192),
    decode_head=dict(in_channels=[192] * 4),
    auxiliary_head=dict(in_channels=192),
)
