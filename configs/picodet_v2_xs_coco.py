"""PicoDet v2 XS on COCO at 416 px: 0.70 M parameters, 0.56 GMAC.

Its rate of 0.28 is for 4 GPUs x 56 images.
"""

_base_ = './picodet_v2_s_coco.py'

model = dict(
    backbone=dict(arch='0.35x'),
    neck=dict(in_channels=[48, 88, 176]),
)

train_dataloader = dict(batch_size=56)
optim_wrapper = dict(optimizer=dict(lr=0.28))
auto_scale_lr = dict(base_batch_size=224)
