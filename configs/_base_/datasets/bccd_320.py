"""BCCD at 320 px with the data settings of PicoDet, in batches of 8."""

_base_ = ['./coco_416.py', './bccd.py']

img_scale = (320, 320)

test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = img_scale
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    collate_fn=dict(sizes=[256, 288, 320, 352, 384]),
    dataset=_base_.bccd.train,
)
val_dataloader = dict(
    num_workers=2, dataset=dict(pipeline=test_pipeline, **_base_.bccd.val)
)
test_dataloader = dict(
    num_workers=2, dataset=dict(pipeline=test_pipeline, **_base_.bccd.test)
)
val_evaluator = _base_.bccd.val_evaluator
test_evaluator = _base_.bccd.test_evaluator
