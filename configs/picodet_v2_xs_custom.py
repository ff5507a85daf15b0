"""PicoDet v2 XS on boxes of your own: set `data_root` and `classes`.

Start it from PaddleDetection's weights, which `paddle_to_mm.py` converts:
`--cfg-options load_from=picodet_v2_xs.pth`.
"""

_base_ = [
    './_base_/models/picodet_v2.py',
    './_base_/datasets/custom_coco.py',
    './_base_/schedules/picodet_custom_data.py',
]

# Has train.json and val.json.
data_root = 'data/custom/'
# As ('cat', 'dog'), or ('cat',); None for all in train.json.
classes = None

model = dict(
    backbone=dict(arch='0.35x'),
    neck=dict(in_channels=[48, 88, 176]),
    # The first assigner is for weights that know nothing yet.
    train_cfg=dict(initial_epoch=0),
)
