"""AnchorFormer S distilled as DeiT is, the graph of the release.

20.68 M, 3.99 GMAC at 224 px with 1,000 classes.
"""

_base_ = './anchorformer_t_distilled_in1k.py'

model = dict(backbone=dict(arch='small'), head=dict(in_channels=384))
