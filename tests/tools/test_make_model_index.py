"""The command; the figures themselves: see analysis/test_model_index.py."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'misc' / 'make_model_index.py'


@pytest.fixture
def make(tmp_path, monkeypatch, capfd):
    """Run the tool on a copy of the project; gives status, output, errors.

    Counting is what the other tests look at: stored entries are taken.
    """
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    shutil.copy(ROOT / 'README.md', tmp_path)
    stored = yaml.safe_load((ROOT / 'configs/metafile.yml').read_text())
    entries = {model['Name']: model for model in stored['Models']}
    monkeypatch.setattr(
        'anchorformer_mm.analysis.model_index.model_entry',
        lambda config, root: entries[config.stem],
    )

    def call(*args):
        arguments = [str(TOOL), '--root', str(tmp_path), *args]
        monkeypatch.setattr(sys, 'argv', arguments)
        status = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as end:
            status = end.code
        return (status, *capfd.readouterr())

    return call


def test_stale_files_are_told_and_then_mended(make, tmp_path):
    readme, meta = tmp_path / 'README.md', tmp_path / 'configs/metafile.yml'
    assert make('--check')[:2] == (0, '')
    whole = readme.read_text(), meta.read_text()
    edited = whole[0].replace('0.993', '0.994'), whole[1] + '# mine\n'
    readme.write_text(edited[0])
    meta.write_text(edited[1])
    status, out, errors = make('--check')
    assert (status, out) == (2, '')
    last = errors.splitlines()[-1]
    assert last.startswith(f'error: {meta} and {readme} not up to date: ')
    assert (readme.read_text(), meta.read_text()) == edited
    assert make()[:2] == (0, f'{meta}\n{readme}\n')
    assert (readme.read_text(), meta.read_text()) == whole
    assert make()[:2] == (0, '')


def test_what_is_written_by_hand_stays(make, tmp_path):
    readme = tmp_path / 'README.md'
    page = '# Mine\n\n' + readme.read_text() + '\nAnd more.\n'
    readme.write_text(page)
    assert make()[:2] == (0, '')
    assert readme.read_text() == page


def test_bad_input_ends_in_one_message(make, tmp_path):
    (tmp_path / 'README.md').write_text('No table.\n')
    status, _, errors = make()
    assert status == 2
    assert errors.splitlines()[-1] == (
        'error: the page has no <!-- begin models-ade20k -->'
    )
    (tmp_path / 'README.md').unlink()
    status, _, errors = make()
    assert status == 2
    assert errors == f'error: --root must hold README.md, got {tmp_path}\n'
