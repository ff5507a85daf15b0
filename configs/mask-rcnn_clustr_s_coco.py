"""Mask R-CNN with ClusTR S on COCO, 12 epochs.

42.33 M. The backbone alone: 22.18 M, 543.0 GMAC at 800 x 1280; the work of
the second stage depends on the image.

Optimiser and schedule are mmdet's for Swin, the one four-level transformer
that it has a Mask R-CNN of: AdamW at 1e-4 for 8 GPUs x 2 images, weight decay
0.05 but for norms.
"""

_base_ = [
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
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

# Theirs goes by the names of Swin's norms.
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0))
