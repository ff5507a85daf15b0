"""Tables 4 and 5: kinds of attention, and numbers of anchors."""

from anchorformer_mm.analysis.paper_tables.reasons import CLASSIFIER
from anchorformer_mm.analysis.paper_tables.row import Row, Table, printed

OURS = 'configs/anchorformer_{}_in1k.py'
TOP1 = dict(top1='top-1 (%)')

PARTS = Table(
    shape=(224, 224),
    accuracies=TOP1,
    rows=(
        Row(
            'ViT, vanilla attention',
            printed(6.3, 1.5, top1=72.51),
            OURS.format('t_vanilla'),
            reason='not known. It is the graph of DeiT-T without the biases '
            'of its projections, which the same table prints with 5.6 M and '
            '1.3 G',
        ),
        Row(
            'anchors among the queries',
            printed(4.7, 0.9, top1=77.48),
            OURS.format('t_query'),
            reason=CLASSIFIER,
        ),
        Row(
            'learned anchors',
            printed(4.2, 0.7, top1=81.12),
            OURS.format('t'),
            reason=CLASSIFIER,
        ),
        Row(
            'DeiT-T',
            printed(5.6, 1.3, top1=74.38),
            'mmpretrain::deit/deit-tiny_4xb256_in1k.py',
        ),
    ),
)


def _anchors(
    size: str, m: int, params_m: float, flops_g: float, top1: float
) -> Row:
    suffix = '' if m == 30 else f'_m{m}'
    return Row(
        f'DeiT-{size}, m = {m}',
        printed(params_m, flops_g, top1=top1),
        OURS.format(f'{size.lower()}{suffix}'),
        reason=CLASSIFIER,
    )


ANCHORS = Table(
    shape=(224, 224),
    accuracies=TOP1,
    rows=(
        _anchors('T', 10, 3.9, 0.6, 77.25),
        _anchors('T', 30, 4.2, 0.7, 81.12),
        _anchors('T', 50, 4.3, 0.8, 79.62),
        _anchors('T', 100, 4.7, 1.0, 75.83),
        _anchors('S', 10, 15.3, 2.4, 81.73),
        _anchors('S', 30, 18.6, 2.7, 84.69),
        _anchors('S', 50, 19.1, 2.9, 82.16),
        _anchors('S', 100, 19.4, 3.2, 80.69),
    ),
)
