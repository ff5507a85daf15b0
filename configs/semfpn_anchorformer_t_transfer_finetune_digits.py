"""Attention transfer of the digits' Semantic-FPN, stage 2: 500 steps.

Maps are those that the neck reads, and labels count as they do in training.
"""

_base_ = './semfpn_anchorformer_t_transfer_digits.py'

max_iters = 500
load_from = 'work_dirs/semfpn_anchorformer_t_transfer_digits/iter_350.pth'

model = dict(target='features', label_weight=1.0)

train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=35),
    dict(
        type='CosineAnnealingLR',
        T_max=max_iters,
        eta_min=1e-5,
        by_epoch=False,
        end=max_iters,
    ),
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
