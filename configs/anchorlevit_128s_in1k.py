"""AnchorLeViT-128s on ImageNet-1k, with mmpretrain's schedule for LeViT."""

_base_ = './anchorlevit_256_in1k.py'

model = dict(backbone=dict(arch='128s'), head=dict(in_channels=384))
