"""UperNet (arXiv 1807.10221) on AnchorFormer S, 150 classes.

Four layers give a map each, resized to strides 4 to 32; the head convolves
every level by itself.
"""

norm_cfg = dict(type='SyncBN', requires_grad=True)
head = dict(
    dropout_ratio=0.1,
    num_classes=150,
    norm_cfg=norm_cfg,
    align_corners=False,
)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    backbone=dict(
        type='anchorformer_mm.AnchorFormer',
        arch='small',
        img_size=512,
        num_anchors=30,
        out_type='featmap',
        out_indices=(2, 5, 8, 11),
        drop_path_rate=0.1,
    ),
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
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
