"""UperNet with AnchorFormer T on ADE20K."""

_base_ = './upernet_anchorformer_s_ade20k.py'

model = dict(
    backbone=dict(arch='tiny'),
    neck=dict(embed_dims=192),
    decode_head=dict(in_channels=[192] * 4),
    auxiliary_head=dict(in_channels=192),
)
