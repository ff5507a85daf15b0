"""PicoDet v2 S on COCO at 416 px: 1.19 M parameters, 0.81 GMAC.

Its rate of 0.24 is for 4 GPUs x 48 images.
"""

_base_ = [
    './_base_/models/picodet_v2.py',
    './_base_/datasets/coco_416.py',
    './_base_/schedules/picodet_v2_300e.py',
    './_base_/det_runtime.py',
]

train_dataloader = dict(batch_size=48)
optim_wrapper = dict(optimizer=dict(lr=0.24))
auto_scale_lr = dict(base_batch_size=192)
