"""Attention transfer from DeiT S on ImageNet, stage 2: ten epochs.

From the teacher's logits alone. Nobody has run it.
"""

_base_ = './anchorformer_s_transfer_in1k.py'

max_epochs = 10
load_from = 'work_dirs/anchorformer_s_transfer_in1k/epoch_1.pth'

model = dict(target='logits')

train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=1000),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        eta_min=1e-6,
        by_epoch=True,
        convert_to_iter_based=True,
        end=max_epochs,
    ),
]
