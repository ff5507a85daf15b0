"""The command line; its parts: see analysis/paper_tables."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from anchorformer_mm.analysis.paper_tables import measure

TOOL = Path(__file__).parents[2] / 'tools/analysis_tools/paper_tables.py'
NAMES = ('table1', 'table2', 'table3', 'table4', 'table5', 'figure5')


@pytest.fixture
def paper_tables(tmp_path, monkeypatch, capfd):
    """Run the tool on an empty page; gives status, output, errors."""
    (tmp_path / 'results.md').write_text(
        ''.join(f'<!-- begin {n} -->\n<!-- end {n} -->\n' for n in NAMES)
    )
    # Of each table, its last row.
    few = {
        name: measure.Table(table.shape, table.accuracies, table.rows[-1:])
        for name, table in measure.TABLES.items()
        if name != 'figure5'
    }
    monkeypatch.setattr(measure, 'TABLES', measure.TABLES | few)

    def call(*args):
        argv = [str(TOOL), '--docs', str(tmp_path), *args]
        monkeypatch.setattr(sys, 'argv', argv)
        status = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as end:
            status = end.code
        printed = capfd.readouterr()
        return status, printed.out, printed.err.splitlines()

    return call


def test_one_table_is_counted_and_the_others_stay(paper_tables, tmp_path):
    status, out, errors = paper_tables('--tables', '4')
    assert (status, out) == (0, '')
    assert 'table4 1/1: DeiT-T' in errors
    document = json.loads((tmp_path / 'results.json').read_text())
    (row,) = document['tables']['table4']['rows']
    assert row['measured']['macs'] == {'as built': 1_253_683_200}
    assert row['measured']['params'] == 5_717_416
    page = (tmp_path / 'results.md').read_text()
    assert '| DeiT-T |' in page
    assert page.count('| model') == 1
    status, _, errors = paper_tables('--tables', '5')
    assert status == 0
    document = json.loads((tmp_path / 'results.json').read_text())
    assert list(document['tables']) == ['table4', 'table5']
    # What is not there yet is not in order.
    status, out, errors = paper_tables('--check')
    assert (status, out) == (2, '')
    assert errors[0].startswith('error: ')
    assert errors[0].endswith('results.json lacks table1')


def test_an_unknown_table_is_refused(paper_tables):
    status, _, errors = paper_tables('--tables', '6')
    assert status == 2
    assert "invalid choice: '6'" in errors[-1]
