"""PicoDet S on COCO at 416 px: 0.99 M parameters, 0.59 GMAC.

Its rate of 0.4 is for 4 GPUs x 80 images.
"""

_base_ = [
    './_base_/models/picodet.py',
    './_base_/datasets/coco_416.py',
    './_base_/schedules/picodet_300e.py',
    './_base_/det_runtime.py',
]
