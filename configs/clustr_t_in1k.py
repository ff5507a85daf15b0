"""ClusTR T on ImageNet, in the recipe of its release.

11.68 M, 3.27 GMAC at 224 px with 1,000 classes.
"""

_base_ = './clustr_s_in1k.py'

model = dict(backbone=dict(arch='tiny'))
