"""For a few hundred images on one GPU or a CPU: 30 epochs in batches of 8.

With 25 iterations an epoch PicoDet's own schedule would warm up for 12 of 30
epochs. Whoever trains longer sets `train_cfg.max_epochs` alone: the cosine
ends where training does.
"""

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=30, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# The rate is for 1 GPU, or CPU, x 8 images.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={
            'anchors': dict(decay_mult=0.0),
            'cls_token': dict(decay_mult=0.0),
            'pos_embed': dict(decay_mult=0.0),
        },
    ),
)
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
