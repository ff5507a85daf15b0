"""What a person decides about the model index: its groups and what to quote.

Nothing here is measured, see :mod:`anchorformer_mm.analysis.model_index`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PICODET = (
    'PP-PicoDet: A Better Real-Time Object Detector on Mobile Devices',
    'https://arxiv.org/abs/2111.00902',
)
ANCHORFORMER = (
    'AnchorFormer: Differentiable Anchor Attention for Efficient Vision '
    'Transformer',
    'https://arxiv.org/abs/2505.16463',
)
CLUSTR = (
    'ClusTR: Exploring Efficient Self-attention via Clustering for Vision '
    'Transformers',
    'https://arxiv.org/abs/2208.13138',
)

# What a config is trained on, by the last word of its name.
PUBLIC_DATA = {
    'coco': 'COCO',
    'voc': 'PASCAL VOC 2007 and 2012',
    'in1k': 'ImageNet-1k',
    'ade20k': 'ADE20K',
}
# Examples and tests: these configs are in no model index.
SMALL_DATA = ('bccd', 'digits')


@dataclass(frozen=True)
class Collection:
    """Models of one method.

    Attributes:
        name: What mim lists it as.
        paper: Title and address.
        architecture: Its parts.
        configs: Patterns of the names of its configs.
        shape: Height and width at which they are counted, px; None for that
            of the test pipeline.
    """

    name: str
    paper: tuple[str, str]
    architecture: tuple[str, ...]
    configs: tuple[str, ...]
    shape: tuple[int, int] | None = None


COLLECTIONS = (
    Collection(
        'PicoDet',
        PICODET,
        ('ESNet', 'CSP-PAN', 'PicoHead'),
        ('picodet_[sml]_*',),
    ),
    Collection(
        'PicoDet with AnchorFormer',
        ANCHORFORMER,
        ('ESNet', 'Anchor attention', 'CSP-PAN', 'PicoHead'),
        ('picodet_anchorformer_*',),
    ),
    Collection(
        'PicoDet v2',
        PICODET,
        ('LCNet', 'LC-PAN', 'PicoHeadV2'),
        ('picodet_v2_[sml]_*', 'picodet_v2_xs_*'),
    ),
    Collection(
        'PicoDet v2 with AnchorFormer',
        ANCHORFORMER,
        ('ESNet', 'Anchor attention', 'LC-PAN', 'PicoHeadV2'),
        ('picodet_v2_anchorformer_*',),
    ),
    Collection(
        'AnchorFormer',
        ANCHORFORMER,
        ('Anchor attention',),
        ('anchorformer_*',),
    ),
    Collection(
        'AnchorLeViT',
        ANCHORFORMER,
        ('LeViT', 'Anchor attention'),
        ('anchorlevit_*',),
    ),
    Collection(
        'AnchorFormer for segmentation',
        ANCHORFORMER,
        ('Anchor attention', 'Semantic-FPN', 'UperNet'),
        ('semfpn_anchorformer_*', 'upernet_anchorformer_*'),
    ),
    Collection(
        'ClusTR',
        CLUSTR,
        ('Cluster attention',),
        ('clustr_*',),
    ),
    Collection(
        'ClusTR for segmentation',
        CLUSTR,
        ('Cluster attention', 'Semantic-FPN', 'UperNet'),
        ('semfpn_clustr_*', 'upernet_clustr_*'),
    ),
    # Photographs of any ratio; papers count at this size.
    Collection(
        'ClusTR for detection',
        CLUSTR,
        ('Cluster attention', 'FPN', 'RetinaNet', 'Mask R-CNN'),
        ('retinanet_clustr_*', 'mask-rcnn_clustr_*'),
        shape=(800, 1280),
    ),
)


@dataclass(frozen=True)
class Claim:
    """What a paper prints of a model, word for word; '-' where nothing."""

    params: str = '-'
    operations: str = '-'
    score: str = '-'


@dataclass(frozen=True)
class Table:
    """A table of models on the front page.

    Attributes:
        score: What their papers print last.
        digits: Decimals of our parameters (M) and multiply-accumulates (G).
        rows: Names of configs, and what their papers print.
    """

    score: str
    digits: tuple[int, int]
    rows: Mapping[str, Claim]


def _twice(params: str, operations: str, score: str) -> Claim:
    return Claim(params, f'{operations} (2 x MACs)', score)


def _unclaimed(names: Sequence[str]) -> dict[str, Claim]:
    return dict.fromkeys(names, Claim())


TABLES = {
    'models-coco': Table(
        'mAP',
        (3, 3),
        {
            'picodet_anchorformer_t_coco': Claim('2.9', '1.1', '41.23'),
            'picodet_anchorformer_s_coco': Claim('5.5', '1.7', '43.61'),
            'picodet_anchorformer_b_coco': Claim('8.6', '2.8', '45.75'),
            **_unclaimed(
                [
                    'picodet_v2_anchorformer_t_coco',
                    'picodet_v2_anchorformer_s_coco',
                    'picodet_v2_anchorformer_b_coco',
                ]
            ),
            'picodet_s_coco': _twice('0.99', '1.24', '30.7'),
            'picodet_m_coco': _twice('2.15', '2.50', '34.8'),
            'picodet_l_coco': _twice('3.30', '3.76', '36.6'),
            'picodet_v2_xs_coco': _twice('0.70', '1.13', '26.2'),
            'picodet_v2_s_coco': _twice('1.18', '1.65', '32.5'),
            'picodet_v2_m_coco': _twice('3.46', '4.34', '37.5'),
            'picodet_v2_l_coco': _twice('5.80', '7.10', '39.4'),
        },
    ),
    'models-imagenet': Table(
        'top-1',
        (2, 2),
        {
            'anchorformer_t_distilled_in1k': Claim('4.2', '0.7', '81.12'),
            'anchorformer_s_distilled_in1k': Claim('18.6', '2.7', '84.69'),
            'anchorformer_b_distilled_in1k': Claim('63.5', '9.2', '86.62'),
            'clustr_t_in1k': Claim('11.68', '2.15'),
            'clustr_s_in1k': Claim('22.69', '4.8', '83.2'),
            'clustr_b_in1k': Claim('40.25', '7.48'),
        },
    ),
    'models-ade20k': Table(
        'mIoU',
        (2, 1),
        {
            'semfpn_anchorformer_s_ade20k': Claim('21.6', '193.7', '43.81'),
            'upernet_anchorformer_s_ade20k': Claim('49.6', '928.1', '46.28'),
        },
    ),
}
