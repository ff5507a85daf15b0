"""Attention transfer on digits, stage 1: 3 epochs without labels.

The teacher is `anchorformer_t_vanilla_digits.py`. Start from what
`deit_to_anchorformer.py` makes of it: docs/transfer.md.
"""

_base_ = './anchorformer_t_digits.py'

max_epochs = 3
teacher = 'work_dirs/anchorformer_t_vanilla_digits/epoch_60.pth'
load_from = 'work_dirs/anchorformer_t_warm_digits.pth'

model = dict(
    type='anchorformer_mm.AttentionTransfer',
    student='ImageClassifier',
    teacher_ckpt=teacher,
    target='attention',
)

train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=3e-3, weight_decay=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=25),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        eta_min=1e-5,
        by_epoch=True,
        convert_to_iter_based=True,
        end=max_epochs,
    ),
]
default_hooks = dict(checkpoint=dict(interval=max_epochs))
