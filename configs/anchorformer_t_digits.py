"""AnchorFormer's graph on single digits: minutes on a CPU, no download.

T is too much for the minutes of two cores: half its width and a third of its
layers. Patches of 8 px make 64 tokens of a digit, so that 30 anchors are
fewer. From so few images anchors that are alike at the start (the release's
0.02) hardly learn: these start distinct.
"""

_base_ = ['./_base_/datasets/digits_cls_64.py', './_base_/cls_runtime.py']

max_epochs = 50

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='anchorformer_mm.AnchorFormer',
        arch=dict(
            embed_dims=96,
            num_layers=4,
            num_heads=3,
            feedforward_channels=384,
        ),
        img_size=64,
        patch_size=8,
        num_anchors=30,
        out_type='avg_featmap',
        attn_cfg=dict(anchor_std=1.0, dwc_v=True),
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=96,
        topk=(1,),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1),
    ),
)

train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=10)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={
            '.anchors': dict(decay_mult=0.0),
            '.cls_token': dict(decay_mult=0.0),
            '.pos_embed': dict(decay_mult=0.0),
        },
    ),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=200),
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
default_hooks = dict(logger=dict(interval=30))
