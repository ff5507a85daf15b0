"""UperNet (arXiv 1807.10221) on AnchorFormer S, 150 classes.

Four layers give a map each, resized to strides 4 to 32; the head convolves
every level by itself.
"""

_base_ = './segmentor_anchorformer.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
head = dict(
    dropout_ratio=0.1,
    num_classes=150,
    norm_cfg=norm_cfg,
    align_corners=False,
)
model = dict(
    neck=dict(
        type='anchorformer_mm.TokenPyramid',
        embed_dims=384,
        upsample='bilinear',
    ),
    decode_head=dict(
        **head,
        type='UPerHead',
        in_channels=[384] * 4,
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        loss_decode=dict(
            type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0
        ),
    ),
    auxiliary_head=dict(
        **head,
        type='FCNHead',
        in_channels=384,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        loss_decode=dict(
            type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4
        ),
    ),
)
