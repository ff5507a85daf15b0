"""PicoDet S for NPUs on COCO at 416 px: 1.15 M parameters, 0.76 GMAC.

LCNet, CSP-PAN and PicoHeadV2 with ReLU6, on pixels from 0 to 1. The original
was trained with mosaics and another schedule; this trains as v2 does.
"""

_base_ = './picodet_v2_s_coco.py'

act_cfg = dict(type='ReLU6')
model = dict(
    data_preprocessor=dict(mean=[0, 0, 0], std=[255, 255, 255]),
    backbone=dict(act_cfg=act_cfg),
    neck=dict(type='anchorformer_mm.CSPPAN', act_cfg=act_cfg),
    bbox_head=dict(stacked_convs=4, act_cfg=act_cfg),
)

train_dataloader = dict(batch_size=40)
optim_wrapper = dict(
    optimizer=dict(lr=0.2),
    paramwise_cfg=dict(custom_keys={'neck': dict(decay_mult=1.0)}),
)
auto_scale_lr = dict(base_batch_size=160)
