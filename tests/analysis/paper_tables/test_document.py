"""The page, JSON and plots of this project, and what is found stale."""

import json
from pathlib import Path
from shutil import copytree

import pytest

from anchorformer_mm.analysis.paper_tables.document import (
    disagreements,
    read,
    write,
)
from anchorformer_mm.analysis.paper_tables.measure import TABLES, measure
from anchorformer_mm.analysis.paper_tables.page import needs_reason
from anchorformer_mm.utils.errors import UsageError

ROOT = Path(__file__).parents[3]
DOCS = ROOT / 'docs'
# Ours of every table, and others of every library.
CHEAP = [
    ('table1', 'AnchorFormer-T'),
    ('table1', 'LeViT-128'),
    ('table1', 'PVTv2-V2'),
    ('table2', 'AnchorFormer-T'),
    ('table2', 'YOLOX-Nano'),
    ('table3', 'Semantic-FPN, AnchorFormer-T'),
    ('table4', 'anchors among the queries'),
    ('table5', 'DeiT-T, m = 100'),
    ('figure5', 'AnchorLeViT-128s'),
]


@pytest.fixture
def docs(tmp_path):
    """A copy of what the tool writes."""
    (tmp_path / 'results.md').write_text((DOCS / 'results.md').read_text())
    (tmp_path / 'results.json').write_text((DOCS / 'results.json').read_text())
    return Path(copytree(DOCS / 'images', tmp_path / 'images')).parent


@pytest.mark.smoke
def test_page_json_and_plots_agree():
    assert disagreements(DOCS) == []


@pytest.mark.parametrize(('name', 'model'), CHEAP)
def test_the_json_has_what_is_counted_now(name, model):
    (row,) = (r for r in TABLES[name].rows if r.name == model)
    (recorded,) = (r for r in read(DOCS)[name]['rows'] if r['name'] == model)
    assert measure(row, TABLES[name], ROOT) == recorded['measured']


def test_every_row_with_code_is_counted():
    for name, counted in read(DOCS).items():
        for row, recorded in zip(
            TABLES[name].rows, counted['rows'], strict=True
        ):
            assert (recorded['measured'] is not None) == row.is_built


def test_figures_that_are_off_have_a_reason():
    for counted in read(DOCS).values():
        for row in counted['rows']:
            if needs_reason(row):
                assert row['reason'], row['name']


def test_others_models_come_out_as_printed():
    off = {
        row['name']
        for counted in read(DOCS).values()
        for row in counted['rows']
        if needs_reason(row) and '::' in (row['config'] or '')
    }
    assert off == {'MobileNetV2'}


def test_writing_what_is_there_changes_nothing(docs):
    before = {p: p.read_bytes() for p in docs.rglob('results.*')}
    write(docs, read(docs))
    assert {p: p.read_bytes() for p in docs.rglob('results.*')} == before
    assert disagreements(docs) == []


@pytest.mark.parametrize(
    ('file', 'old', 'new', 'finding'),
    [
        ('results.md', '20.676', '18.600', 'results.md: table1 is not that'),
        ('results.json', '20676176', '18600000', 'table1 has other rows'),
        ('results.json', '84.69', '84.7', 'table1 has other rows'),
        ('results.json', '"DeiT-T"', '"DeiT"', 'table1 has other rows'),
        ('results.json', '"table3"', '"table"', 'lacks table3'),
    ],
)
def test_what_is_stale_is_found(docs, file, old, new, finding):
    text = (docs / file).read_text()
    assert old in text
    (docs / file).write_text(text.replace(old, new))
    assert any(finding in line for line in disagreements(docs))


def test_other_pictures_are_found(docs):
    images = docs / 'images'
    (images / 'paper_table2.png').replace(images / 'paper_table1.png')
    found = disagreements(docs)
    assert [Path(line.split()[0]).name for line in found] == [
        'paper_table1.png',
        'paper_table2.png',
    ]


def test_a_page_without_the_parts_is_told_and_left(docs):
    (docs / 'results.md').write_text('# Results\n')
    numbers = (docs / 'results.json').read_text()
    with pytest.raises(UsageError, match='no <!-- begin'):
        write(docs, read(docs))
    assert (docs / 'results.md').read_text() == '# Results\n'
    assert (docs / 'results.json').read_text() == numbers
    (docs / 'results.md').unlink()
    with pytest.raises(UsageError, match='page not found'):
        write(docs, read(docs))


@pytest.mark.parametrize('text', ['{', '[]', json.dumps(dict(a=1))])
def test_another_json_is_told(docs, text):
    (docs / 'results.json').write_text(text)
    with pytest.raises(UsageError, match='is not from this tool'):
        read(docs)
