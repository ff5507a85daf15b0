"""Attention transfer of the digits' Semantic-FPN, stage 1: 350 steps.

The teacher is `semfpn_anchorformer_t_vanilla_digits.py`; its neck and head
come with what `deit_to_anchorformer.py` makes of it: docs/transfer.md. Tied
anchors did not follow softmax attention.
"""

_base_ = './semfpn_anchorformer_t_digits.py'

max_iters = 350
teacher = 'work_dirs/semfpn_anchorformer_t_vanilla_digits/iter_3400.pth'
load_from = 'work_dirs/semfpn_anchorformer_t_warm_digits.pth'

model = dict(
    type='anchorformer_mm.AttentionTransfer',
    student='EncoderDecoder',
    teacher_ckpt=teacher,
    target='attention',
    backbone=dict(
        attn_cfg=dict(tied=False, logits='standardized', logit_scale=2.0),
        init_cfg=None,
    ),
)

train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(optimizer=dict(lr=3e-3, weight_decay=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=35),
    dict(
        type='CosineAnnealingLR',
        T_max=max_iters,
        eta_min=1e-5,
        by_epoch=False,
        end=max_iters,
    ),
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
