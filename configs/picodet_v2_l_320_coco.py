"""PicoDet v2 L on COCO at 320 px: 5.80 M parameters, 2.09 GMAC.

Its rate of 0.12 is for 4 GPUs x 24 images.
"""

_base_ = './picodet_v2_l_coco.py'

img_scale = (320, 320)

test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = img_scale
train_dataloader = dict(collate_fn=dict(sizes=[256, 288, 320, 352, 384]))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
