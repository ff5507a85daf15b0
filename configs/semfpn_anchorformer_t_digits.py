"""Semantic-FPN with a small AnchorFormer on the embedded digits.

As on ADE20K, the backbone comes from classification: train
`anchorformer_t_paper_digits.py` first, which takes minutes (for label maps the
paper's anchors were best, docs/models.md). All of its layers are equally deep,
so that the head takes the pyramid as it is, without an FPN.
"""

_base_ = [
    './_base_/models/semfpn_anchorformer.py',
    './_base_/datasets/digits_seg_192.py',
    './_base_/schedules/adamw_small_data.py',
    './_base_/seg_runtime.py',
]

max_iters = 3400

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=96,
            num_layers=4,
            num_heads=3,
            feedforward_channels=192,
        ),
        img_size=128,
        patch_size=8,
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.0,
        attn_cfg=dict(dwc_v=True),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/anchorformer_t_paper_digits/epoch_60.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(
        _delete_=True,
        type='anchorformer_mm.TokenPyramid',
        embed_dims=96,
        in_stride=8,
    ),
    decode_head=dict(
        in_channels=[96] * 4,
        num_classes=11,
        dropout_ratio=0.0,
        # mmseg has 0.01; its effect alone was not measured.
        init_cfg=dict(type='Normal', std=0.1, override=dict(name='conv_seg')),
        # Nine pixels of ten are background.
        loss_decode=dict(class_weight=[0.5] + [1.0] * 10),
    ),
)

train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=max_iters, val_interval=1700
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(optimizer=dict(lr=3e-3))
auto_scale_lr = dict(enable=False, base_batch_size=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),
    dict(
        type='CosineAnnealingLR',
        T_max=max_iters,
        eta_min=1e-5,
        by_epoch=False,
        end=max_iters,
    ),
]
randomness = dict(seed=0)
default_hooks = dict(checkpoint=dict(interval=1700))
