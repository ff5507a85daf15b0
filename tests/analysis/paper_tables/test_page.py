import pytest

from anchorformer_mm.analysis.paper_tables.measure import (
    AS_BUILT,
    TABLES,
    record,
)
from anchorformer_mm.analysis.paper_tables.page import block, needs_reason
from anchorformer_mm.analysis.paper_tables.row import (
    TWICE,
    Row,
    Table,
    printed,
)

TABLE = Table((224, 224), dict(top1='top-1 (%)'), ())


def counted(params, macs):
    return dict(
        params=params, trainable=params, auxiliary=0, macs={AS_BUILT: macs}
    )


def recorded(row, params=None, macs=None):
    return record(row, TABLE, params and counted(params, macs))


def cells(line):
    return [cell.strip() for cell in line.strip('|').split('|')]


def lines_of(name, *rows):
    return block(
        name, dict(rows=rows, versions=dict(torch='1.2'))
    ).splitlines()


def test_a_row_has_what_is_printed_and_what_is_counted():
    row = recorded(
        Row('A', printed(4.0, 1.0, top1=70.5), 'configs/a.py'),
        4_100_000,
        900_000_000,
    )
    assert row['deviation_percent'] == dict(params=2.5, flops=-10.0)
    header, _, line, *rest = lines_of('table4', row)
    assert cells(header)[:3] == ['model', 'input', 'Params (M), printed']
    assert cells(line) == (
        ['A', '224', '4.0', '4.100', '+2.5 %', '1.0', '0.900', '-10.0 %']
        + ['-', '70.5', '-', '`configs/a.py`']
    )
    assert '- A: not known.' in rest
    assert 'python tools/analysis_tools/paper_tables.py --tables 4' in rest
    assert rest[-1] == 'Counted with torch 1.2.'


def test_folded_macs_stand_beside_those_of_the_paper_s_order():
    row = recorded(Row('A', config='a.py'), 1, 900_000_000)
    row['measured']['macs']['folded'] = 700_000_000

    header, _, line = lines_of('table4', row)[:3]
    assert cells(line)[cells(header).index('folded')] == '0.700'


def test_a_row_without_code_has_its_claims_and_the_reason():
    (line,) = (
        line
        for line in lines_of('table4', recorded(Row('B', printed(None, 2.0))))
        if line.startswith('| B')
    )
    assert cells(line) == (
        ['B', '-', '-', '-', '-', '2.0', '-', '-', '-', '-', '-']
        + ['not in these libraries']
    )


def test_twice_the_multiply_accumulates_are_compared_with_as_much():
    row = recorded(
        Row('C', printed(None, 1.2), 'c.py', flops_are=TWICE), 1, 600_000_000
    )
    assert row['deviation_percent'] == dict(flops=0.0)
    line = lines_of('table4', row)[2]
    assert cells(line)[5:8] == ['1.2 (2 x MACs)', '0.600', '+0.0 %']


@pytest.mark.parametrize(
    ('claimed', 'macs', 'expected'),
    [
        (0.7, 657_000_000, False),
        (0.7, 640_000_000, True),
        (0.70, 734_000_000, False),
        (0.7, 751_000_000, True),
        (3.23, 3_300_000_000, False),
        (3.23, 3_400_000_000, True),
    ],
)
def test_rounding_needs_no_reason(claimed, macs, expected):
    row = recorded(Row('D', printed(None, claimed), 'd.py'), 1, macs)
    assert needs_reason(row) == expected


def test_rows_of_one_reason_are_explained_together():
    rows = [
        recorded(
            Row(name, printed(1.0, None), 'a.py', reason=reason), 2_000_000, 1
        )
        for name, reason in (('A', 'x'), ('B', 'y'), ('C', 'x'))
    ]
    lines = lines_of('table4', *rows)
    assert [line for line in lines if line.startswith('- ')] == [
        '- A; C: x.',
        '- B: y.',
    ]


def test_pairs_are_compared_with_one_another():
    rows = [
        recorded(Row('LeViT-1', config='a.py'), 3_000_000, 2_000_000_000),
        recorded(
            Row('AnchorLeViT-1', config='b.py', beside='LeViT-1'),
            2_000_000,
            1_500_000_000,
        ),
    ]
    lines = lines_of('figure5', *rows)
    assert cells(lines[2]) == (
        ['AnchorLeViT-1, LeViT-1', '3.000', '2.000', '2.000', '1.500']
        + ['25.0 %', '28.5 to 40.0 %', '-', '-', '`b.py`; `a.py`']
    )
    assert 'Off by' not in '\n'.join(lines)


def test_ours_and_what_is_not_in_the_paper_are_marked():
    (ours,) = (r for r in TABLES['table2'].rows if r.name == 'AnchorFormer-T')
    (other,) = (r for r in TABLES['table2'].rows if r.name == 'PicoDet-S')
    lines = lines_of('table2', recorded(ours, 1, 1), recorded(other, 1, 1))
    assert cells(lines[2])[0] == '**AnchorFormer-T**'
    assert cells(lines[3])[0] == 'PicoDet-S (not in the paper)'
