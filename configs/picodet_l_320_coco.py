"""PicoDet L on COCO at 320 px: 3.31 M parameters, 1.08 GMAC.

Its rate of 0.3 is for 4 GPUs x 56 images.
"""

_base_ = './picodet_l_coco.py'

img_scale = (320, 320)

test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = img_scale
train_dataloader = dict(
    batch_size=56, collate_fn=dict(sizes=[256, 288, 320, 352, 384])
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=224)
