"""Figure 5: operations saved by anchors in DeiT and in LeViT."""

from anchorformer_mm.analysis.paper_tables.row import Row, Table

DEIT = (
    ('T', 'tiny_4xb256'),
    ('S', 'small_4xb256'),
    ('B', 'base_16xb64'),
)
LEVIT = ('128s', '128', '192', '256', '384')
# Percent, for all sizes together.
CLAIMED_SAVINGS = dict(DeiT=(41.3, 46.7), LeViT=(28.5, 40.0))


def _pair(base: str, size: str, theirs: Row, config: str) -> tuple[Row, Row]:
    ours = Row(f'Anchor{base}-{size}', config=config, beside=theirs.name)
    return theirs, ours


TABLE = Table(
    shape=(224, 224),
    accuracies={},
    rows=(
        *(
            row
            for size, name in DEIT
            for row in _pair(
                'DeiT',
                size,
                Row(
                    f'DeiT-{size}',
                    config=f'mmpretrain::deit/deit-{name}_in1k.py',
                ),
                f'configs/anchorformer_{size.lower()}_in1k.py',
            )
        ),
        *(
            row
            for size in LEVIT
            for row in _pair(
                'LeViT',
                size,
                Row(
                    f'LeViT-{size}',
                    config=f'mmpretrain::levit/levit-{size}_8xb256_in1k.py',
                    overrides={'model.head.distillation': False},
                    what='one classifier',
                ),
                f'configs/anchorlevit_{size}_in1k.py',
            )
        ),
    ),
)
