"""3,000 steps of 8 images with AdamW, for 50 to 5,000 images.

The best of six evaluations is kept. Whoever trains longer sets
`train_cfg.max_iters` alone, to which the cosine goes: some 4 steps an image
are 30 epochs.
"""

_base_ = './adamw_small_data.py'

train_cfg = dict(type='IterBasedTrainLoop', max_iters=3000, val_interval=500)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# The rate of a config is for 1 GPU, or CPU, x 8 images.
auto_scale_lr = dict(enable=False, base_batch_size=8)

warmup_iters = 100
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
        by_epoch=False,
    ),
]
