"""PicoDet's schedule: SGD, warm-up of 300 iterations, cosine, averaging."""

max_epochs = 300

train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# The rate is for 4 GPUs x 80 images; `--auto-scale-lr` scales it to others.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.4, momentum=0.9, weight_decay=4e-5),
    # Norms decay in the neck alone; anchors and positions never do.
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            'neck': dict(decay_mult=1.0),
            'anchors': dict(decay_mult=0.0),
            'logit_scale': dict(decay_mult=0.0),
            'cls_token': dict(decay_mult=0.0),
            'pos_embed': dict(decay_mult=0.0),
        },
    ),
)
auto_scale_lr = dict(enable=False, base_batch_size=320)

# Who trains for fewer epochs stops early on the same cosine; T_max shortens
# the cosine.
warmup_iters = 300
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
        T_max=max_epochs,
        convert_to_iter_based=True,
    ),
]

# Evaluated and saved weights average the current cycle: here the last 20
# epochs.
custom_hooks = [
    dict(type='anchorformer_mm.CycleEMAHook', cycle_epochs=40, priority=49)
]
