"""80,000 steps of AdamW with a learning rate by layer, as for Semantic-FPN.

Weight decay and polynomial are what mmseg's PoolFormer has there; its rate is
halved for half its batch.
"""

_base_ = './adamw_160k.py'

max_iters = 80_000

train_cfg = dict(max_iters=max_iters, val_interval=8_000)
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, end=1500),
    dict(
        type='PolyLR',
        power=0.9,
        eta_min=0.0,
        by_epoch=False,
        begin=1500,
        end=max_iters,
    ),
]
