"""AnchorFormer T distilled as DeiT is, the graph of the release.

5.48 M, 1.03 GMAC at 224 px with 1,000 classes.

The teacher may be any classifier of the same classes. DeiT found that
convolutional ones teach best; this one reaches 83.66 % top-1.
"""

_base_ = './anchorformer_t_in1k.py'

model = dict(
    type='anchorformer_mm.DistilledImageClassifier',
    teacher_config='mmpretrain::convnext/convnext-base_32xb128_in1k.py',
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/convnext/'
    'convnext-base_32xb128_in1k_20221207-fbdb5eb9.pth',
    backbone=dict(with_dist_token=True),
    head=dict(type='anchorformer_mm.DistilledDeiTClsHead'),
)

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.dist_token': dict(decay_mult=0.0)})
)
