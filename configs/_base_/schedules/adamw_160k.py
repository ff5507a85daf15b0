"""160,000 steps of AdamW with a learning rate by layer, as for UperNet.

Warm-up, linear decay and weight decay are mmseg's for UperNet on ViT and
Swin; the decay by layer is what it has for BEiT.
"""

max_iters = 160_000

train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=max_iters, val_interval=16_000
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='anchorformer_mm.LayerDecayOptimWrapperConstructor',
    optimizer=dict(
        type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01
    ),
    paramwise_cfg=dict(
        layer_decay_rate=0.9,
        norm_decay_mult=0.0,
        custom_keys={
            'anchors': dict(decay_mult=0.0),
            'logit_scale': dict(decay_mult=0.0),
            '.cls_token': dict(decay_mult=0.0),
            '.dist_token': dict(decay_mult=0.0),
            '.pos_embed': dict(decay_mult=0.0),
        },
    ),
)
# 8 GPUs of 2 images.
auto_scale_lr = dict(enable=False, base_batch_size=16)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, end=1500),
    dict(
        type='PolyLR',
        power=1.0,
        eta_min=0.0,
        by_epoch=False,
        begin=1500,
        end=max_iters,
    ),
]
