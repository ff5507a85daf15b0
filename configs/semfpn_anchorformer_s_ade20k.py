"""Semantic-FPN with AnchorFormer S on ADE20K, crops of 512x512, 80k steps."""

_base_ = [
    './_base_/models/semfpn_anchorformer.py',
    './_base_/datasets/ade20k_512.py',
    './_base_/schedules/adamw_80k.py',
    './_base_/seg_runtime.py',
]

randomness = dict(seed=0)
