"""AnchorFormer's graph on single digits: minutes on a CPU, no download.

T is too much for the minutes of two cores: half its width, a third of its
layers, half their MLP ratio. From so few images the paper's anchors learn
less than softmax attention, untied and standardized ones more (see
docs/models.md). Weights start larger than ImageNet's 0.02, and `dwc_v` adds a
local path.
"""

_base_ = [
    './_base_/datasets/digits_cls_48.py',
    './_base_/schedules/adamw_small_data.py',
    './_base_/cls_runtime.py',
]

max_epochs = 60

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='anchorformer_mm.AnchorFormer',
        arch=dict(
            embed_dims=96,
            num_layers=4,
            num_heads=3,
            feedforward_channels=192,
        ),
        img_size=48,
        patch_size=8,
        num_anchors=30,
        out_type='avg_featmap',
        attn_cfg=dict(
            tied=False,
            logits='standardized',
            logit_scale=2.0,
            anchor_std=1.0,
            dwc_v=True,
        ),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.15),
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
auto_scale_lr = dict(enable=False, base_batch_size=16)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=400),
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
default_hooks = dict(logger=dict(interval=30, ignore_last=False))
