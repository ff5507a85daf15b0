"""Semantic-FPN with AnchorFormer B on ADE20K.

91.23 M, 483.6 GMAC at 512 x 2048 with 150 classes.
"""

_base_ = './semfpn_anchorformer_s_ade20k.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.2),
    neck=[
        dict(
            type='anchorformer_mm.TokenPyramid',
            embed_dims=768,
            norm_cfg=dict(type='SyncBN', requires_grad=True),
        ),
        dict(type='FPN', in_channels=[768] * 4, out_channels=256, num_outs=4),
    ],
)
