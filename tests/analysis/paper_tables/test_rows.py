from pathlib import Path

import pytest

from anchorformer_mm.analysis.config_models import config_path
from anchorformer_mm.analysis.paper_tables import (
    ablations,
    coco,
    imagenet,
    pairs,
)
from anchorformer_mm.analysis.paper_tables.measure import TABLES
from anchorformer_mm.analysis.paper_tables.reasons import CLASSIFIER
from anchorformer_mm.analysis.paper_tables.row import printed

ROOT = Path(__file__).parents[3]
ROWS = [row for table in TABLES.values() for row in table.rows]


def test_the_tables_have_the_rows_of_the_paper():
    of_paper = {
        name: sum(
            bool(row.claimed) and row.claimed_by == 'the paper'
            for row in table.rows
        )
        for name, table in TABLES.items()
    }
    assert of_paper == dict(
        table1=40, table2=18, table3=10, table4=4, table5=8, figure5=0
    )


@pytest.mark.parametrize('name', TABLES)
def test_names_are_told_apart_and_pairs_are_there(name):
    rows = TABLES[name].rows
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert {row.beside for row in rows} <= {'', *names}


def test_every_config_is_there():
    for row in ROWS:
        if row.config is not None:
            assert (ROOT / config_path(row.config)).is_file(), row.name
        assert row.config is None or row.constructor is None


def test_every_claim_is_a_figure_that_the_table_shows():
    for table in TABLES.values():
        known = {'params_m', 'flops_g', *table.accuracies}
        for row in table.rows:
            assert row.claimed.keys() <= known
            assert all(value > 0 for value in row.claimed.values())
            assert row.trained.keys() <= table.accuracies.keys()


def test_no_accuracy_is_ours_where_nothing_was_trained():
    assert not any(row.trained for row in ROWS)


def test_what_is_printed_twice_is_the_same():
    def claims(table, name):
        (row,) = (r for r in table.rows if r.name == name)
        return [row.claimed[key] for key in ('params_m', 'flops_g', 'top1')]

    first, fourth = imagenet.TABLE, ablations.PARTS
    fifth = ablations.ANCHORS
    tiny = claims(first, 'AnchorFormer-T')
    assert tiny == claims(fourth, 'learned anchors')
    assert tiny == claims(fifth, 'DeiT-T, m = 30')
    small = claims(first, 'AnchorFormer-S')
    assert small == claims(fifth, 'DeiT-S, m = 30')
    assert claims(first, 'DeiT-T') == claims(fourth, 'DeiT-T')


def test_the_reason_states_what_twelve_layers_take():
    gmacs, params = [], []
    for d in (192, 384, 768):
        # MLPs with a ratio of 4, keys, values and output.
        layer = 8 * d**2 + 3 * d**2
        gmacs.append((196 * 768 * d + 12 * 197 * layer) / 1e9)
        biases_and_norms = 6 * d + 4 * d
        embedding = 769 * d + 198 * d + 2 * d
        classifier = 1000 * (d + 1)
        params.append(12 * (layer + biases_and_norms) + embedding + classifier)
    assert '{:.2f} G (T), {:.2f} G (S) and {:.2f} G (B)'.format(*gmacs) in (
        CLASSIFIER.replace('15.45 G (B),', '15.45 G (B)')
    )
    millions = [f'{p / 1e6:.1f}' for p in params]
    assert '{}, {} and {} M'.format(*millions) in CLASSIFIER
    # Of each size, more than is printed for any number of anchors, but 10
    # million for the 100 of T.
    for row in ablations.ANCHORS.rows:
        size = 'TS'.index(row.name[5])
        assert row.claimed['flops_g'] < gmacs[size] + 0.02


def test_the_claimed_savings_are_those_of_the_printed_rows():
    rows = {row.name: row.claimed for row in imagenet.TABLE.rows}
    saved = [
        100 * (1 - rows[f'AnchorFormer-{s}']['flops_g'] / deit['flops_g'])
        for s in 'TS'
        for deit in [rows[f'DeiT-{s}']]
    ]
    low, high = pairs.CLAIMED_SAVINGS['DeiT']
    assert all(low - 0.05 <= each <= high for each in saved)


def test_figures_that_are_not_printed_are_left_out():
    assert printed(None, 1.4, map=27.35, ap50=None) == dict(
        flops_g=1.4, map=27.35
    )
    by_name = {row.name: row for row in coco.TABLE.rows}
    assert 'params_m' not in by_name['FBNetV5-A'].claimed
