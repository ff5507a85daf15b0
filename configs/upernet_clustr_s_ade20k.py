"""UperNet with ClusTR S on ADE20K, crops of 512x512, 160k steps.

52.49 M, 1383.1 GMAC at 512 x 2048 with 150 classes.
"""

_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k_512.py',
    './_base_/schedules/adamw_160k.py',
    './_base_/seg_runtime.py',
]

model = dict(
    backbone=dict(
        type='anchorformer_mm.ClusTR', arch='small', drop_path_rate=0.1
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)

randomness = dict(seed=0)
