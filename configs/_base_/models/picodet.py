"""PicoDet S (v1): ESNet 0.75x, CSP-PAN, PicoHead; 0.99 M parameters."""

model = dict(
    type='anchorformer_mm.PicoDet',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(type='anchorformer_mm.ESNet', arch='0.75x'),
    neck=dict(
        type='anchorformer_mm.CSPPAN',
        in_channels=[96, 192, 384],
        out_channels=96,
    ),
    bbox_head=dict(
        type='anchorformer_mm.PicoHead',
        num_classes=80,
        in_channels=96,
        feat_channels=96,
        stacked_convs=2,
        strides=[8, 16, 32, 64],
        reg_max=7,
        loss_cls=dict(
            type='mmdet.VarifocalLoss',
            use_sigmoid=True,
            alpha=0.75,
            gamma=2.0,
            iou_weighted=True,
            loss_weight=1.0,
        ),
        loss_bbox=dict(type='mmdet.GIoULoss', loss_weight=2.0),
        loss_dfl=dict(type='mmdet.DistributionFocalLoss', loss_weight=0.25),
    ),
    train_cfg=dict(
        assigner=dict(type='anchorformer_mm.PicoSimOTAAssigner'),
    ),
    test_cfg=dict(
        nms_pre=1000,
        score_thr=0.025,
        nms=dict(type='nms', iou_threshold=0.6),
        max_per_img=100,
    ),
)
