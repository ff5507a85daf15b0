"""AnchorFormer B fine-tuned at 384 px, in DeiT's recipe.

79.78 M, 45.74 GMAC at 384 px with 1,000 classes.

Start from the weights trained at 224 px, whose position embedding is resized
as it is loaded: `--cfg-options load_from=work_dirs/anchorformer_b_in1k/...`.
"""

_base_ = 'mmpretrain::deit/deit-base_16xb32_in1k-384px.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='anchorformer_mm.AnchorFormer',
        arch='base',
        img_size=384,
        num_anchors=30,
    )
)

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'anchors': dict(decay_mult=0.0)})
)
