"""AnchorLeViT-256 on ImageNet-1k, distilled from a ConvNeXt-B.

LeViT itself was distilled from a RegNetY-16GF, of which mmpretrain has no
weights.
"""

_base_ = './anchorlevit_256_in1k.py'

model = dict(
    type='anchorformer_mm.DistilledImageClassifier',
    teacher_config='mmpretrain::convnext/convnext-base_32xb128_in1k.py',
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/convnext/'
    'convnext-base_32xb128_in1k_20221207-fbdb5eb9.pth',
    head=dict(type='anchorformer_mm.DistilledLeViTClsHead', distillation=True),
)
