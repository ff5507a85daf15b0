"""PicoDet v2 M on COCO at 320 px: 3.47 M parameters, 1.27 GMAC.

Its rate of 0.24 is for 4 GPUs x 48 images.
"""

_base_ = './picodet_v2_m_coco.py'

img_scale = (320, 320)

test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = img_scale
train_cfg = dict(max_epochs=300)
train_dataloader = dict(collate_fn=dict(sizes=[256, 288, 320, 352, 384]))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
