"""AnchorLeViT-384 on ImageNet-1k, with mmpretrain's schedule for LeViT."""

_base_ = './anchorlevit_256_in1k.py'

model = dict(
    backbone=dict(arch='384', drop_path_rate=0.1), head=dict(in_channels=768)
)
