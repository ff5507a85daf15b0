"""ClusTR B on ImageNet, in the recipe of its release.

40.25 M, 10.84 GMAC at 224 px with 1,000 classes.
"""

_base_ = './clustr_s_in1k.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.3))

optim_wrapper = dict(clip_grad=dict(_delete_=True, max_norm=1.0))
