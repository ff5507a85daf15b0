"""Semantic-FPN (arXiv 1901.02446) on AnchorFormer S, 150 classes.

Four layers give a map each; transposed convolutions and pooling bring them
to strides 4 to 32.
"""

_base_ = './segmentor_anchorformer.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    neck=[
        dict(
            type='anchorformer_mm.TokenPyramid',
            embed_dims=384,
            norm_cfg=norm_cfg,
        ),
        dict(type='FPN', in_channels=[384] * 4, out_channels=256, num_outs=4),
    ],
    decode_head=dict(
        type='FPNHead',
        in_channels=[256] * 4,
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=128,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(
            type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0
        ),
    ),
)
