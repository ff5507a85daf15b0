"""Semantic-FPN with a small AnchorFormer on label maps of your own.

Set `data_root` and `classes`, here, in a config that has this one as `_base_`,
or with `--cfg-options data_root=...`. How files lie is told in
`_base_/datasets/custom_maps.py`.
"""

_base_ = [
    './_base_/models/semfpn_anchorformer.py',
    './_base_/datasets/custom_maps.py',
    './_base_/schedules/custom_data.py',
    './_base_/seg_runtime.py',
]

# Has images/train, masks/train, images/val and masks/val.
data_root = 'data/custom/'
# As ('background', 'road'), in the order of their numbers; None for the lines
# of classes.txt in data_root.
classes = None

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=96,
            num_layers=4,
            num_heads=3,
            feedforward_channels=192,
        ),
        img_size=256,
        patch_size=8,
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.0,
        # Not the paper's; they learn from little data, see docs/models.md.
        attn_cfg=dict(
            tied=False, logits='standardized', logit_scale=2.0, dwc_v=True
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
        loss_decode=dict(avg_non_ignore=True),
    ),
)

optim_wrapper = dict(optimizer=dict(lr=2e-3))
default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=2))
