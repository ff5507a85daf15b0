"""PicoDet v2 S: LCNet 0.75x, LC-PAN, PicoHeadV2; 1.19 M parameters."""

_base_ = './picodet.py'

model = dict(
    backbone=dict(type='anchorformer_mm.LCNet', arch='0.75x'),
    neck=dict(type='anchorformer_mm.LCPAN'),
    bbox_head=dict(
        type='anchorformer_mm.PicoHeadV2',
        loss_cls=dict(
            _delete_=True,
            type='anchorformer_mm.ActivatedVarifocalLoss',
            alpha=0.75,
            gamma=2.0,
            loss_weight=1.0,
        ),
        loss_bbox=dict(loss_weight=2.5),
        loss_dfl=dict(loss_weight=0.5),
    ),
    train_cfg=dict(
        _delete_=True,
        # Epochs of the first assigner; a short training has fewer.
        initial_epoch=100,
        initial_assigner=dict(
            type='anchorformer_mm.PicoATSSAssigner', topk=9, anchor_scale=5
        ),
        assigner=dict(
            type='anchorformer_mm.PicoTaskAlignedAssigner',
            topk=13,
            alpha=1.0,
            beta=6.0,
        ),
    ),
)
