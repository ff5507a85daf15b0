"""AnchorFormer B on ImageNet, in DeiT's recipe of 300 epochs.

79.49 M, 15.62 GMAC at 224 px with 1,000 classes.
"""

_base_ = 'mmpretrain::deit/deit-base_16xb64_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='anchorformer_mm.AnchorFormer',
        arch='base',
        num_anchors=30,
        drop_path_rate=0.1,
    )
)

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'anchors': dict(decay_mult=0.0)})
)
