"""For a few hundred images on one GPU or a CPU: 30 epochs in batches of 8.

With 25 iterations an epoch PicoDet's own schedule would warm up for 12 of 30
epochs. Whoever trains longer sets `train_cfg.max_epochs` alone: the cosine
ends where training does.
"""

_base_ = './adamw_small_data.py'

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=30, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# The rate is for 1 GPU, or CPU, x 8 images.
optim_wrapper = dict(optimizer=dict(lr=4e-3), clip_grad=dict(max_norm=10))
auto_scale_lr = dict(enable=False, base_batch_size=8)

warmup_iters = 50
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.1,
        by_epoch=False,
        end=warmup_iters + 1,
    ),
    dict(
        type='anchorformer_mm.CosineAfterWarmupLR',
        warmup_iters=warmup_iters,
        convert_to_iter_based=True,
    ),
]

# After t iterations the average remembers about t / 9 of them.
custom_hooks = [
    dict(type='EMAHook', ema_type='anchorformer_mm.ThresholdEMA', priority=49),
    dict(type='anchorformer_mm.ChannelsLastHook'),
]
