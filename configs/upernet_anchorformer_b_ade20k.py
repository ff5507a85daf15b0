"""UperNet with AnchorFormer B on ADE20K.

113.49 M, 1198.4 GMAC at 512 x 2048 with 150 classes.
"""

_base_ = './upernet_anchorformer_s_ade20k.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.2),
    neck=dict(embed_dims=768),
    decode_head=dict(in_channels=[768] * 4),
    auxiliary_head=dict(in_channels=768),
)
