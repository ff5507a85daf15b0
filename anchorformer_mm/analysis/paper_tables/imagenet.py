"""Table 1: classifiers on ImageNet-1k."""

from torch import Tensor, nn

from anchorformer_mm.analysis.paper_tables.reasons import CLASSIFIER
from anchorformer_mm.analysis.paper_tables.row import Row, Table, printed

EFFICIENTNET = 'mmpretrain::efficientnet/efficientnet-{}_8xb32_in1k.py'
LEVIT = 'mmpretrain::levit/levit-{}_8xb256_in1k.py'
DEIT = 'mmpretrain::deit/deit-{}_in1k.py'
SWIN = 'mmpretrain::swin_transformer/swin-{}_16xb64_in1k.py'
MVIT = 'mmpretrain::mvit/mvitv2-{}_8xb256_in1k.py'
OURS = 'configs/anchorformer_{}_in1k.py'


class PyramidClassifier(nn.Module):
    """PVTv2-b2, the mean of its last map, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        # Needs mmdet, which the other rows do without.
        from mmdet.models.backbones import PyramidVisionTransformerV2

        self.backbone = PyramidVisionTransformerV2(
            embed_dims=64, num_layers=[3, 4, 6, 3]
        )
        self.head = nn.Linear(512, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, 1000)."""
        return self.head(self.backbone(images)[-1].mean((2, 3)))


def _row(
    name: str,
    params_m: float,
    flops_g: float,
    top1: float,
    top5: float,
    config: str | None = None,
    px: int = 224,
    **more,
) -> Row:
    claimed = printed(params_m, flops_g, top1=top1, top5=top5)
    return Row(name, claimed, config, shape=(px, px), **more)


TABLE = Table(
    shape=(224, 224),
    accuracies=dict(top1='top-1 (%)', top5='top-5 (%)'),
    rows=(
        _row(
            *('EfficientNet-B0', 5.3, 0.4, 77.05, 91.27),
            EFFICIENTNET.format('b0'),
        ),
        _row(
            *('EfficientNet-B1', 7.8, 0.7, 78.32, 90.72),
            EFFICIENTNET.format('b1'),
            px=240,
        ),
        _row('LeViT-128', 9.2, 0.4, 78.33, 89.18, LEVIT.format(128)),
        _row('LeViT-192', 10.9, 0.7, 80.13, 90.53, LEVIT.format(192)),
        _row('CastlingViT-192', 12.7, 0.8, 79.73, 91.27),
        _row(
            *('AnchorFormer-T', 4.2, 0.7, 81.12, 93.86),
            OURS.format('t_distilled'),
            reason=CLASSIFIER,
        ),
        Row('AnchorFormer-T, one head', config=OURS.format('t')),
        _row('Sparsifiner', 4.2, 1.3, 74.38, 91.97),
        _row('Combiner', 6.4, 1.5, 68.37, 76.81),
        _row(
            *('ClusterFormer', 5.3, 1.8, 64.72, 73.74),
            reason='not in these libraries; printed as Sparsifiner',
        ),
        _row(
            *('EfficientNet-B3', 12.3, 1.8, 81.54, 94.85),
            EFFICIENTNET.format('b3'),
            px=300,
        ),
        _row(
            *('EfficientNet-B4', 19.1, 4.2, 82.83, 96.43),
            EFFICIENTNET.format('b4'),
            px=380,
        ),
        _row('DeiT-T', 5.6, 1.3, 74.38, 91.97, DEIT.format('tiny_4xb256')),
        _row('DeiT-S', 21.9, 4.6, 81.58, 95.06, DEIT.format('small_4xb256')),
        _row('LeViT-256', 18.9, 1.1, 81.53, 94.17, LEVIT.format(256)),
        _row('LeViT-384', 39.1, 2.4, 82.17, 95.36, LEVIT.format(384)),
        _row('Swin-T', 29.6, 4.5, 80.94, 94.33, SWIN.format('tiny')),
        _row('CSWin-T', 23.4, 4.3, 82.22, 93.46),
        _row(
            *('PVTv2-V2', 25.5, 4.2, 81.86, 93.65),
            constructor=PyramidClassifier,
            what="mmdet's PVTv2-b2 and a linear layer",
        ),
        _row('MViTv2-T', 24.1, 4.7, 82.21, 94.16, MVIT.format('tiny')),
        _row('CastlingViT-384', 45.8, 2.9, 83.26, 96.69),
        _row('SlideFormer-T', 12.2, 2.6, 77.51, 91.67),
        _row('SlideFormer-S', 22.7, 4.5, 81.75, 92.48),
        _row('BiFormer-T', 13.1, 2.2, 81.32, 93.31),
        _row('BiFormer-S', 26.4, 4.5, 83.89, 93.86),
        _row(
            *('AnchorFormer-S', 18.6, 2.7, 84.69, 96.82),
            OURS.format('s_distilled'),
            reason=CLASSIFIER,
        ),
        Row('AnchorFormer-S, one head', config=OURS.format('s')),
        _row(
            *('EfficientNet-B5', 30.7, 9.9, 83.64, 96.13),
            EFFICIENTNET.format('b5'),
            px=456,
        ),
        _row('DeiT-B', 86.3, 17.5, 83.21, 96.13, DEIT.format('base_16xb64')),
        _row('Swin-S', 50.3, 8.7, 83.16, 96.17, SWIN.format('small')),
        _row('Swin-B', 88.1, 15.4, 83.51, 96.14, SWIN.format('base')),
        _row('CSWin-S', 35.6, 6.9, 83.57, 95.75),
        _row('CSWin-B', 78.3, 15.2, 84.22, 96.14),
        _row('AutoFormer-S', 22.9, 5.1, 81.72, 95.73),
        _row('AutoFormer-B', 54.8, 11.7, 82.47, 95.64),
        _row('MViTv2-S', 34.7, 6.9, 83.56, 94.71, MVIT.format('small')),
        _row('MViTv2-B', 51.2, 10.1, 84.37, 95.06, MVIT.format('base')),
        _row('CastlingViT-S', 34.7, 7.3, 84.63, 95.36),
        _row('CastlingViT-B', 87.2, 17.3, 84.82, 95.87),
        _row('SlideFormer-B', 89.7, 15.5, 84.42, 96.07),
        _row('BiFormer-B', 58.3, 9.8, 84.13, 95.88),
        _row(
            *('AnchorFormer-B', 63.5, 9.2, 86.62, 97.84),
            OURS.format('b_distilled'),
            reason=CLASSIFIER,
        ),
        Row('AnchorFormer-B, one head', config=OURS.format('b')),
        Row(
            'AnchorFormer-B, one head, 384 px',
            config=OURS.format('b_384'),
            shape=(384, 384),
        ),
    ),
)
