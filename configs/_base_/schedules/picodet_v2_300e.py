"""PicoDet v2's schedule: v1's, with one average over the whole training."""

_base_ = './picodet_300e.py'

optim_wrapper = dict(
    paramwise_cfg=dict(
        # The fusing blocks of the neck are LCNet's, whose norms do not decay;
        # all other norms of the neck do, and those of the alignment branch.
        custom_keys={
            '_delete_': True,
            'neck.laterals': dict(decay_mult=1.0),
            'neck.downsamples': dict(decay_mult=1.0),
            'neck.extra': dict(decay_mult=1.0),
            'bbox_head.align': dict(decay_mult=1.0),
            'anchors': dict(decay_mult=0.0),
            'logit_scale': dict(decay_mult=0.0),
            'cls_token': dict(decay_mult=0.0),
            'pos_embed': dict(decay_mult=0.0),
        },
    ),
)

custom_hooks = [
    dict(type='EMAHook', ema_type='anchorformer_mm.ThresholdEMA', priority=49)
]
