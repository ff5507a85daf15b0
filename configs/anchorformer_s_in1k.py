"""AnchorFormer S on ImageNet, in DeiT's recipe of 300 epochs.

20.29 M, 3.97 GMAC at 224 px with 1,000 classes.
"""

_base_ = 'mmpretrain::deit/deit-small_4xb256_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='anchorformer_mm.AnchorFormer',
        arch='small',
        num_anchors=30,
    )
)

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.anchors': dict(decay_mult=0.0)})
)
