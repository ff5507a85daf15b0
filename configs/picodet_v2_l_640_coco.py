"""PicoDet v2 L on COCO at 640 px: 5.80 M parameters, 8.34 GMAC.

Its rate of 0.06 is for 4 GPUs x 12 images.
"""

_base_ = './picodet_v2_l_coco.py'

img_scale = (640, 640)

test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = img_scale
train_cfg = dict(max_epochs=200)
train_dataloader = dict(
    batch_size=12, collate_fn=dict(sizes=[576, 608, 640, 672, 704])
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.06))
auto_scale_lr = dict(base_batch_size=48)
