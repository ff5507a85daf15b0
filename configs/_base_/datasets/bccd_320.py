"""BCCD at 320 px with the data settings of PicoDet, in batches of 8."""

_base_ = ['./coco_320_small.py', './bccd.py']

train_dataloader = dict(dataset=_base_.bccd.train)
val_dataloader = dict(dataset=_base_.bccd.val)
test_dataloader = dict(dataset=_base_.bccd.test)
val_evaluator = _base_.bccd.val_evaluator
test_evaluator = _base_.bccd.test_evaluator
