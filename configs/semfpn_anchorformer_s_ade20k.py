"""Semantic-FPN with AnchorFormer S on ADE20K, crops of 512x512, 80k steps.

26.39 M, 189.4 GMAC at 512 x 2048 with 150 classes.
"""

_base_ = [
    './_base_/models/semfpn_anchorformer.py',
    './_base_/datasets/ade20k_512.py',
    './_base_/schedules/adamw_80k.py',
    './_base_/seg_runtime.py',
]

randomness = dict(seed=0)
