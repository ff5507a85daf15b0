"""AnchorFormer T on boxes of your own: set `data_root` and `classes`.

`tools/dataset_converters/to_coco.py` makes the files out of YOLO, VOC, LabelMe
or COCO. A config that has this one as `_base_`, or `--cfg-options
data_root=...`, may set the two as well.
"""

_base_ = [
    './_base_/models/picodet.py',
    './_base_/datasets/custom_coco.py',
    './_base_/schedules/custom_data.py',
    './_base_/det_runtime.py',
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

optim_wrapper = dict(optimizer=dict(lr=4e-3), clip_grad=dict(max_norm=10))
# After t iterations the average remembers about t / 9 of them.
custom_hooks = [
    dict(type='EMAHook', ema_type='anchorformer_mm.ThresholdEMA', priority=49),
    dict(type='anchorformer_mm.ChannelsLastHook'),
]

log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=500, max_keep_ckpts=2),
)
