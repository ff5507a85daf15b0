"""PicoDet v2 XS on COCO at 320 px: 0.70 M parameters, 0.33 GMAC.

Its rate of 0.32 is for 4 GPUs x 64 images.
"""

_base_ = './picodet_v2_xs_coco.py'

img_scale = (320, 320)

test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = img_scale
train_dataloader = dict(
    batch_size=64, collate_fn=dict(sizes=[256, 288, 320, 352, 384])
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.32))
auto_scale_lr = dict(base_batch_size=256)
