"""A PicoDet on data of your own: `custom_data.py`, its rate, the average.

For trainings from nothing and from published weights alike.
"""

_base_ = ['./custom_data.py', '../det_runtime.py']

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
