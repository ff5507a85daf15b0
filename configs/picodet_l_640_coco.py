"""PicoDet L on COCO at 640 px: 3.31 M parameters, 4.34 GMAC.

Its rate of 0.3 is for 4 GPUs x 32 images.
"""

_base_ = './picodet_l_coco.py'

img_scale = (640, 640)

test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = img_scale
train_dataloader = dict(
    batch_size=32, collate_fn=dict(sizes=[576, 608, 640, 672, 704])
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=128)
