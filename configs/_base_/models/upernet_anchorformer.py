"""UperNet (arXiv 1807.10221) on AnchorFormer S, 150 classes.

Four layers give a map each, resized to strides 4 to 32; the head convolves
every level by itself.
"""

_base_ = ['./upernet.py', './anchorformer_maps.py']

model = dict(
    backbone=_base_.anchorformer_maps,
    neck=dict(
        type='anchorformer_mm.TokenPyramid',
        embed_dims=384,
        upsample='bilinear',
    ),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
