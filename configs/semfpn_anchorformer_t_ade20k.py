"""Semantic-FPN with AnchorFormer T on ADE20K."""

_base_ = './semfpn_anchorformer_s_ade20k.py'

model = dict(
    backbone=dict(arch='tiny'),
    neck=[
        dict(
            type='anchorformer_mm.TokenPyramid',
            embed_dims=192,
            norm_cfg=dict(type='SyncBN', requires_grad=True),
        ),
        dict(type='FPN', in_channels=[192] * 4, out_channels=256, num_outs=4),
    ],
)
