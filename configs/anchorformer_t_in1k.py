"""AnchorFormer T on ImageNet, in DeiT's recipe of 300 epochs.

5.29 M, 1.03 GMAC at 224 px with 1,000 classes.
"""

_base_ = 'mmpretrain::deit/deit-tiny_4xb256_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='anchorformer_mm.AnchorFormer',
        arch='tiny',
        num_anchors=30,
    )
)

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'anchors': dict(decay_mult=0.0)})
)
