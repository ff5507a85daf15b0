"""Semantic-FPN with AnchorFormer T on ADE20K.

9.90 M, 113.0 GMAC at 512 x 2048 with 150 classes.
"""

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
