"""BCCD, 364 photographs of blood cells: its files and classes.

The data is github.com/Shenggan/BCCD_Dataset (MIT licence), its annotations
as COCO. No key is one of mmdet's, so that any detector can inherit them.
"""

bccd_files = dict(
    data_root='data/bccd/',
    data_prefix=dict(img='images/'),
    metainfo=dict(classes=('RBC', 'WBC', 'Platelets')),
)
bccd = dict(
    train=dict(ann_file='train.json', **bccd_files),
    val=dict(ann_file='val.json', **bccd_files),
    test=dict(ann_file='test.json', **bccd_files),
    val_evaluator=dict(ann_file='data/bccd/val.json'),
    test_evaluator=dict(ann_file='data/bccd/test.json'),
)
