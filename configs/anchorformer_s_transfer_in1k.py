"""Attention transfer from DeiT S on ImageNet, stage 1: one epoch, no labels.

Start from what `deit_to_anchorformer.py` makes of the teacher, a checkpoint of
mmpretrain, timm or the DeiT release: docs/transfer.md. Nobody has run it.
"""

_base_ = './anchorformer_s_in1k.py'

max_epochs = 1
teacher = 'checkpoints/deit-small.pth'
load_from = 'work_dirs/anchorformer_s_warm_in1k.pth'

model = dict(
    type='anchorformer_mm.AttentionTransfer',
    student='ImageClassifier',
    teacher_ckpt=teacher,
    target='attention',
    backbone=dict(
        attn_cfg=dict(tied=False, logits='standardized', logit_scale=2.0)
    ),
)

train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        eta_min=1e-5,
        by_epoch=True,
        convert_to_iter_based=True,
        end=max_epochs,
    ),
]
