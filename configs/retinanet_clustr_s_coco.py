"""RetinaNet with ClusTR S on COCO, 12 epochs.

32.41 M, 694.5 GMAC at 800 x 1280 with 80 classes.

Optimiser and schedule are mmdet's for PVTv2, whose patches and feed-forward
networks ClusTR has: AdamW at 1e-4 for 8 GPUs x 2 images, weight decay 1e-4.
"""

_base_ = [
    'mmdet::pvt/retinanet_pvtv2-b2_fpn_1x_coco.py',
    './_base_/custom_imports.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='anchorformer_mm.ClusTR',
        arch='small',
        drop_path_rate=0.1,
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
