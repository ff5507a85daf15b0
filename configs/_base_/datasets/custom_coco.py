"""Boxes of your own, in the COCO files that to_coco.py writes.

Names of images start from `data_root`, which a config sets with `classes`.
"""

_base_ = './coco_320_small.py'

# Our tools hand data_root and classes on, to data sets, metrics and heads.
custom_data = True

train_dataloader = dict(
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        ann_file='train.json',
        data_prefix=dict(img=''),
        # Images without objects teach what is none.
        filter_cfg=dict(filter_empty_gt=False),
    ),
)
val_dataloader = dict(
    dataset=dict(ann_file='val.json', data_prefix=dict(img=''))
)
test_dataloader = val_dataloader
val_evaluator = dict(classwise=True)
test_evaluator = val_evaluator
