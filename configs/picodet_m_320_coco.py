"""PicoDet M on COCO at 320 px: 2.15 M parameters, 0.72 GMAC.

Its rate of 0.4 is for 4 GPUs x 128 images.
"""

_base_ = './picodet_m_coco.py'

img_scale = (320, 320)

test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = img_scale
train_dataloader = dict(
    batch_size=128, collate_fn=dict(sizes=[256, 288, 320, 352, 384])
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=512)
