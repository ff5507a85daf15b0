"""mmseg's smallest Semantic-FPN on the digits, for comparison: ResNet-18.

A step takes four times as long as the AnchorFormer's, so that in the same
minutes it has a quarter of the steps. Its backbone starts from nothing.
"""

_base_ = './semfpn_anchorformer_t_digits.py'

max_iters = 850

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNetV1c',
        depth=18,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        strides=(1, 2, 2, 2),
        dilations=(1, 1, 1, 1),
        norm_cfg=dict(type='BN'),
    ),
    neck=dict(
        _delete_=True,
        type='FPN',
        in_channels=[64, 128, 256, 512],
        out_channels=96,
        num_outs=4,
    ),
)

train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=max_iters, end=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))
