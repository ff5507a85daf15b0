"""Semantic-FPN with ClusTR S on ADE20K, crops of 512x512, 80k steps.

26.43 M, 626.5 GMAC at 512 x 2048 with 150 classes.
"""

_base_ = [
    './_base_/models/semfpn.py',
    './_base_/datasets/ade20k_512.py',
    './_base_/schedules/adamw_80k.py',
    './_base_/seg_runtime.py',
]

model = dict(
    backbone=dict(
        type='anchorformer_mm.ClusTR', arch='small', drop_path_rate=0.1
    ),
    neck=dict(
        type='FPN',
        in_channels=[64, 128, 256, 512],
        out_channels=256,
        num_outs=4,
    ),
)

randomness = dict(seed=0)
