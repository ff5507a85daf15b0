"""AnchorFormer B distilled as DeiT is, the graph of the release.

80.26 M, 15.70 GMAC at 224 px with 1,000 classes.
"""

_base_ = './anchorformer_t_distilled_in1k.py'

model = dict(backbone=dict(arch='base'), head=dict(in_channels=768))

train_dataloader = dict(batch_size=64)
