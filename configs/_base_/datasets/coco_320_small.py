"""COCO files of a few hundred images: 320 px, in batches of 8.

Larger images let smaller objects be found, and take longer: for 416 px set
`img_scale`, and `sizes` to 352 to 480.
"""

_base_ = './coco_416.py'

img_scale = (320, 320)

test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = img_scale
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    collate_fn=dict(sizes=[256, 288, 320, 352, 384]),
)
val_dataloader = dict(num_workers=2, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
