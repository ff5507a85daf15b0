"""AnchorLeViT-256 on ImageNet-1k, with mmpretrain's schedule for LeViT."""

_base_ = 'mmpretrain::levit/levit-256_8xb256_in1k.py'

model = dict(
    backbone=dict(type='anchorformer_mm.AnchorLeViT'),
    # mmpretrain's head cannot be trained in distillation mode.
    head=dict(distillation=False),
)
# The schedule spares LeViT's `.attention_biases`, and thereby ours.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'anchors': dict(decay_mult=0.0)})
)
