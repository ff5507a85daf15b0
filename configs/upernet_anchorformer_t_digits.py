"""UperNet on the digits; the rest is as for Semantic-FPN.

A step takes longer, and there are fewer of them. The auxiliary loss counts in
full, where mmseg has 0.4; what that does alone was not measured.
"""

_base_ = './semfpn_anchorformer_t_digits.py'

max_iters = 3200

last_layer = dict(type='Normal', std=0.1, override=dict(name='conv_seg'))
loss = dict(type='CrossEntropyLoss', class_weight=[0.5] + [1.0] * 10)

model = dict(
    decode_head=dict(
        _delete_=True,
        type='UPerHead',
        in_channels=[96] * 4,
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=80,
        dropout_ratio=0.0,
        num_classes=11,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        init_cfg=last_layer,
        loss_decode=loss,
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=96,
        in_index=2,
        channels=64,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=11,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        init_cfg=last_layer,
        loss_decode=loss,
    ),
)

train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=max_iters, end=max_iters)
default_hooks = dict(checkpoint=dict(interval=1600))
