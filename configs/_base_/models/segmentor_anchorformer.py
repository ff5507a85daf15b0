"""A segmentor on AnchorFormer S, with maps of four layers, for any head."""

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
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
