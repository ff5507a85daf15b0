"""PicoDet's schedule: SGD, warm-up of 300 iterations, cosine, averaging."""

max_epochs = 300

train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# The rate is for 4 GPUs x 80 images.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.4, momentum=0.9, weight_decay=4e-5),
    # Norms decay in the neck alone; anchors never do.
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            'neck': dict(decay_mult=1.0),
            'anchors': dict(decay_mult=0.0),
        },
    ),
)
auto_scale_lr = dict(enable=False, base_batch_size=320)

# mmengine counts the cosine from the first iteration, the original from the
# end of the warm-up.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=300),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        eta_min=0,
        begin=0,
        end=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]

# mmdet's exponential law stands in for PicoDet's, which starts from zeros and
# is reset every 40 epochs.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.0002,
        update_buffers=True,
        priority=49,
    )
]
