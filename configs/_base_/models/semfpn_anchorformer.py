"""Semantic-FPN (arXiv 1901.02446) on AnchorFormer S, 150 classes.

Four layers give a map each; transposed convolutions and pooling bring them
to strides 4 to 32.
"""

_base_ = ['./semfpn.py', './anchorformer_maps.py']

model = dict(
    backbone=_base_.anchorformer_maps,
    neck=[
        dict(
            type='anchorformer_mm.TokenPyramid',
            embed_dims=384,
            norm_cfg=_base_.norm_cfg,
        ),
        dict(type='FPN', in_channels=[384] * 4, out_channels=256, num_outs=4),
    ],
)
