"""PicoDet S on boxes of your own: set `data_root` and `classes`.

Start it from PaddleDetection's weights, which `paddle_to_mm.py` converts:
`--cfg-options load_from=picodet_s.pth`.
"""

_base_ = [
    './_base_/models/picodet.py',
    './_base_/datasets/custom_coco.py',
    './_base_/schedules/picodet_custom_data.py',
]

# Has train.json and val.json.
data_root = 'data/custom/'
# As ('cat', 'dog'), or ('cat',); None for all in train.json.
classes = None
