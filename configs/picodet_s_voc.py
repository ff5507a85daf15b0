"""PicoDet S on PASCAL VOC 2007 and 2012 at 320 px, 20 classes.

Its rate of 0.4 is for 4 GPUs x 128 images.
"""

_base_ = './picodet_s_320_coco.py'

# Objects marked difficult are left out of training, as mmdet has it; the
# original trains on them.
voc = dict(
    type='VOCDataset',
    data_root='data/VOCdevkit/',
    filter_cfg=dict(filter_empty_gt=True),
    pipeline=_base_.train_pipeline,
)
voc07 = dict(
    ann_file='VOC2007/ImageSets/Main/trainval.txt',
    data_prefix=dict(sub_data_root='VOC2007/'),
)
voc12 = dict(
    ann_file='VOC2012/ImageSets/Main/trainval.txt',
    data_prefix=dict(sub_data_root='VOC2012/'),
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        ignore_keys=['dataset_type'],
        datasets=[dict(**voc, **voc07), dict(**voc, **voc12)],
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='VOCDataset',
        data_root='data/VOCdevkit/',
        ann_file='VOC2007/ImageSets/Main/test.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        test_mode=True,
        pipeline=_base_.test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True, type='VOCMetric', metric='mAP', eval_mode='11points'
)
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(save_best='pascal_voc/mAP'))
model = dict(bbox_head=dict(num_classes=20))
