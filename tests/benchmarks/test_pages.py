"""Generated pages beside their figures, the printed rows, and the models."""

import json
import shutil
from pathlib import Path

import model_index
import paper_tables
import pytest
import yaml
from modelindex.load_model_index import load

ROOT = Path(__file__).parents[2]
DECISIONS = model_index.load_decisions()
COUNTED = json.loads((ROOT / 'docs/results.json').read_text())['tables']
ENTRIES = {
    entry['Name']: entry
    for entry in yaml.safe_load((ROOT / 'configs/metafile.yml').read_text())[
        'Models'
    ]
}


@pytest.mark.smoke
@pytest.mark.parametrize('script', ['paper_tables', 'model_index'])
def test_the_pages_are_up_to_date(run_script, script):
    assert run_script(script, '--check') == (0, '', '')


@pytest.fixture
def copy(tmp_path):
    """A copy of everything that is made."""
    (tmp_path / 'docs').mkdir()
    for name in ('results.md', 'results.json', 'models.md'):
        shutil.copy(ROOT / 'docs' / name, tmp_path / 'docs')
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    shutil.copy(ROOT / 'README.md', tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ('file', 'old', 'new'),
    [
        ('docs/results.md', '20.676', '18.600'),
        ('docs/results.json', '84.69', '84.7'),
        ('docs/results.json', '"name": "DeiT-T"', '"name": "DeiT"'),
        ('docs/results.md', '<!-- begin table3 -->', ''),
        ('docs/models.md', '0.993', '0.994'),
        ('README.md', '41.23', '41.24'),
        ('README.md', '<!-- end claims -->', ''),
        ('configs/metafile.yml', '# Made by', '# By'),
        ('configs/metafile.yml', 'Name: picodet_s_coco', 'Name: mine'),
    ],
)
def test_what_was_changed_by_hand_is_told(run_script, copy, file, old, new):
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))
    of_index = 'results' not in file
    where = ('--root', copy) if of_index else ('--docs', copy / 'docs')
    script = 'model_index' if of_index else 'paper_tables'
    status, out, err = run_script(script, '--check', *where)
    assert (status, out) == (2, '')
    assert err.startswith('error: ')


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


def test_the_reader_of_model_indices_accepts_it():
    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert index.check(silent=True) in (None, [])
    assert not index.check_errors
    assert {model.name for model in index.models} == ENTRIES.keys()


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
