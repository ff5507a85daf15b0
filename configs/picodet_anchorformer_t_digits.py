"""AnchorFormer T on the embedded digits: minutes on a CPU, no download.

2,000 steps of 8 scenes, to a box mAP of 0.753: at a given cost, twice the
steps on half the batch learn more. `train_cfg.max_epochs` and the scheduler's
`T_max` and `end` say how long; nothing else depends on it. `make demo` sets
them to half of it; `python tools/train.py` with this file trains all.
"""

_base_ = [
    './_base_/models/picodet.py',
    './_base_/datasets/digits_192.py',
    './_base_/schedules/adamw_small_data.py',
    './_base_/det_runtime.py',
]

max_epochs = 8

model = dict(
    backbone=dict(
        type='anchorformer_mm.AnchorESNet',
        # Not the paper's; they learn from little data, see docs/models.md.
        stage_cfg=dict(tied=False, logits='standardized', logit_scale=2.0),
    ),
    bbox_head=dict(num_classes=10),
)

train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=2
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(optimizer=dict(lr=1e-2), clip_grad=dict(max_norm=10))
auto_scale_lr = dict(enable=False, base_batch_size=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        eta_min=2e-5,
        by_epoch=True,
        convert_to_iter_based=True,
        end=max_epochs,
    ),
]
randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(interval=2, max_keep_ckpts=2),
    # Of every evaluation the same 8 scenes, once draw is True.
    visualization=dict(interval=5, score_thr=0.4),
)
visualizer = dict(line_width=1)
custom_hooks = [dict(type='anchorformer_mm.ChannelsLastHook')]
