"""AnchorFormer T on boxes of your own: set `data_root` and `classes`.

`tools/dataset_converters/to_coco.py` makes the files out of YOLO, VOC, LabelMe
or COCO. A config that has this one as `_base_`, or `--cfg-options
data_root=...`, may set the two as well.
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

model = dict(
    backbone=dict(
        type='anchorformer_mm.AnchorESNet',
        stage_cfg=dict(
            depth=2,
            num_anchors=30,
            mlp_ratio=2.0,
            # Not the paper's; they learn from little data, see docs/models.md.
            tied=False,
            logits='standardized',
            logit_scale=2.0,
        ),
    ),
)
