"""UperNet with AnchorFormer S on ADE20K, crops of 512x512, 160k steps.

50.33 M, 937.5 GMAC at 512 x 2048 with 150 classes.
"""

_base_ = [
    './_base_/models/upernet_anchorformer.py',
    './_base_/datasets/ade20k_512.py',
    './_base_/schedules/adamw_160k.py',
    './_base_/seg_runtime.py',
]

randomness = dict(seed=0)
