"""Generated pages beside their figures, the printed rows, and the models."""

import json
import shutil
from pathlib import Path

import model_index
import paper_tables
import pytest
import yaml
from common import replace_blocks
from modelindex.load_model_index import load

from anchorformer_mm.analysis.config_models import config_path
from anchorformer_mm.utils.errors import UsageError

ROOT = Path(__file__).parents[2]
PRINTED = paper_tables.load_printed()
TABLES = PRINTED['tables']
DECISIONS = model_index.load_decisions()
COUNTED = json.loads((ROOT / 'docs/results.json').read_text())['tables']
ENTRIES = {
    entry['Name']: entry
    for entry in yaml.safe_load((ROOT / 'configs/metafile.yml').read_text())[
        'Models'
    ]
}


@pytest.mark.parametrize('script', ['paper_tables', 'model_index'])
def test_the_pages_are_up_to_date(run_script, script):
    assert run_script(script, '--check') == (0, '', '')


@pytest.fixture
def copy(tmp_path):
    """A copy of everything that is made."""
    (tmp_path / 'docs').mkdir()
    for name in ('results.md', 'results.json'):
        shutil.copy(ROOT / 'docs' / name, tmp_path / 'docs')
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    shutil.copy(ROOT / 'README.md', tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ('file', 'old', 'new'),
    [
        ('docs/results.md', '20.676', '18.600'),
        ('docs/results.json', '20676176', '18600000'),
        ('docs/results.json', '84.69', '84.7'),
        ('docs/results.json', '"name": "DeiT-T"', '"name": "DeiT"'),
        ('docs/results.json', '"tables"', '"table"'),
        ('docs/results.md', '<!-- begin table3 -->', ''),
        ('README.md', '0.993', '0.994'),
        ('README.md', '<!-- end models-coco -->', ''),
        ('configs/metafile.yml', '# Made by', '# By'),
        ('configs/metafile.yml', 'Name: picodet_s_coco', 'Name: mine'),
    ],
)
def test_what_was_changed_by_hand_is_told(run_script, copy, file, old, new):
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))
    of_index = file.startswith(('README', 'configs'))
    where = ('--root', copy) if of_index else ('--docs', copy / 'docs')
    script = 'model_index' if of_index else 'paper_tables'
    status, out, err = run_script(script, '--check', *where)
    assert (status, out) == (2, '')
    assert err.startswith('error: ')


def test_one_table_is_counted_and_the_rest_stays(run_script, copy):
    path = copy / 'docs' / 'results.json'
    before = json.loads(path.read_text())
    stale = path.read_text().replace('1253683200', '1')
    path.write_text(stale)
    docs = ('--docs', copy / 'docs')
    status, out, err = run_script('paper_tables', '--tables', 'table4', *docs)
    assert status == 0, err
    after = json.loads(path.read_text())
    assert after['runs'] == before['runs']
    for name in ('table4', 'table5'):
        rows = [table['tables'][name]['rows'] for table in (before, after)]
        assert rows[0] == rows[1]


# Of each table, and of each kind of index entry, what is quick to count.
@pytest.mark.parametrize(
    ('table', 'name'),
    [
        ('table1', 'DeiT-T'),
        ('table1', 'PVTv2-V2'),
        ('table1', 'AnchorFormer-T'),
        ('table2', 'AnchorFormer-T'),
        ('table3', 'Semantic-FPN, Swin'),
        ('figure5', 'LeViT-128s'),
        ('figure5', 'AnchorLeViT-128s'),
    ],
)
def test_stored_rows_are_those_of_the_models(table, name):
    (row,) = (r for r in COUNTED[table]['rows'] if r['name'] == name)
    assert paper_tables.count_row(row, row['shape']) == row['counted']


@pytest.mark.parametrize(
    'name',
    [
        'picodet_s_320_coco',
        'mask-rcnn_clustr_s_coco',
        'semfpn_anchorformer_t_ade20k',
        'anchorlevit_128s_in1k',
    ],
)
def test_stored_entries_are_those_of_the_models(name):
    configs = model_index.public_configs(ROOT / 'configs', DECISIONS)
    path = ROOT / 'configs' / f'{name}.py'
    entry = model_index.model_entry(path, configs[path], DECISIONS)
    assert entry == ENTRIES[name]


def test_the_printed_rows_are_those_of_the_paper():
    of_paper = {
        name: sum(
            'flops_g' in row and 'claimed_by' not in row
            for row in table['rows']
        )
        for name, table in TABLES.items()
    }
    assert of_paper == dict(
        table1=40, table2=18, table3=10, table4=4, table5=8, figure5=0
    )
    for table in TABLES.values():
        names = [row['name'] for row in table['rows']]
        assert len(set(names)) == len(names)
        for row in table['rows']:
            assert row.get('beside', names[0]) in names
            if 'config' in row:
                assert (ROOT / config_path(row['config'])).is_file()


def test_what_is_printed_twice_is_the_same():
    def claims(table, name):
        (row,) = (r for r in TABLES[table]['rows'] if r['name'] == name)
        return [row[key] for key in ('params_m', 'flops_g', 'top1')]

    tiny = claims('table1', 'AnchorFormer-T')
    assert tiny == claims('table4', 'learned anchors')
    assert tiny == claims('table5', 'DeiT-T, m = 30')
    small = claims('table1', 'AnchorFormer-S')
    assert small == claims('table5', 'DeiT-S, m = 30')
    assert claims('table1', 'DeiT-T') == claims('table4', 'DeiT-T')


def test_the_reader_of_model_indices_accepts_it():
    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert index.check(silent=True) in (None, [])
    assert not index.check_errors
    models = {model.name: model for model in index.models}
    assert models.keys() == ENTRIES.keys()
    model = models['picodet_s_coco']
    assert model.metadata.parameters == 992_715
    assert model.metadata.flops == 2 * model.metadata.data['MACs']


@pytest.mark.parametrize('name', ['picodet_s_cooc', 'resnet_in1k'])
def test_a_config_without_a_place_stops_the_listing(tmp_path, name):
    (tmp_path / 'picodet_s_digits.py').touch()
    assert model_index.public_configs(tmp_path, DECISIONS) == {}
    (tmp_path / f'{name}.py').touch()
    with pytest.raises(UsageError, match=name):
        model_index.public_configs(tmp_path, DECISIONS)


def test_only_the_content_of_a_generated_part_is_replaced():
    page = 'a\n<!-- begin one -->\nold\n<!-- end one -->\nz\n'
    new = replace_blocks(page, {'one': r'a \1 | b'})
    assert new == page.replace('old', r'a \1 | b')
    with pytest.raises(UsageError, match='begin two'):
        replace_blocks(page, {'two': ''})


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip('mkdocs', reason='the site needs mkdocs')
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(
        str(ROOT / 'mkdocs.yml'), site_dir=str(tmp_path), strict=True
    )
    build(config)
    for page in (ROOT / 'docs').glob('*.md'):
        folder = tmp_path if page.stem == 'index' else tmp_path / page.stem
        assert (folder / 'index.html').is_file()
