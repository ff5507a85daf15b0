"""What a wheel and an editable install of the project carry."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from anchorformer_mm.__main__ import resolve_config

ROOT = Path(__file__).resolve().parents[1]
CARRIED = {'configs', 'tools', 'mmcv_ops', 'model-index.yml'}
CODE = ['anchorformer_mm', 'configs', 'tools', 'mmcv_ops', 'requirements']


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the build reads, so that it leaves nothing behind."""
    copy = tmp_path / 'tree'
    copy.mkdir()
    ignore = shutil.ignore_patterns('.mim*', '__pycache__')
    for name in CODE:
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ['setup.py', 'pyproject.toml', 'model-index.yml', 'LICENSE']:
        shutil.copy(ROOT / name, copy / name)
    return copy


def build(tree: Path, hook: str) -> Path:
    """Call a hook of the build backend in its own process, as pip does."""
    out = tree.parent / 'out'
    out.mkdir(exist_ok=True)
    code = f'from setuptools import build_meta as b; b.{hook}({str(out)!r})'
    command = [sys.executable, '-c', code]
    answer = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return next(out.glob('*.whl'))


def test_a_wheel_carries_the_configs_where_mim_looks(tree: Path) -> None:
    with zipfile.ZipFile(build(tree, 'build_wheel')) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (name for name in names if name.endswith('/METADATA'))
        requirements = re.findall(
            r'^Requires-Dist: (.*)$', wheel.read(metadata).decode(), re.M
        )
    for path in [*ROOT.glob('configs/**/*.py'), ROOT / 'configs/metafile.yml']:
        assert f'anchorformer_mm/.mim/{path.relative_to(ROOT)}' in names
    for name in ['anchorformer_mm/registry.py', 'tools/train.py']:
        prefix = '' if name.startswith('anchor') else 'anchorformer_mm/.mim/'
        assert prefix + name in names
    assert not any('__pycache__' in name for name in names)
    hard = [line for line in requirements if 'extra ==' not in line]
    assert hard
    assert not any('mm' in line for line in hard)
    assert not (tree / 'anchorformer_mm' / '.mim').exists()


def test_an_editable_install_links_to_the_tree(tree: Path) -> None:
    mim = tree / 'anchorformer_mm' / '.mim'
    mim.mkdir()
    (mim / 'left_by_an_older_one').touch()
    build(tree, 'build_editable')
    build(tree, 'build_editable')
    assert {path.name for path in mim.iterdir()} == CARRIED
    assert all(path.is_symlink() for path in mim.iterdir())
    assert (mim / 'configs' / 'metafile.yml').read_text() == (
        tree / 'configs' / 'metafile.yml'
    ).read_text()
    (tree / 'configs' / 'new.py').touch()
    assert (mim / 'configs' / 'new.py').exists()


@pytest.fixture
def unpacked(tree: Path, tmp_path: Path) -> Path:
    """A folder with what a wheel installs, to stand first on the path."""
    folder = tmp_path / 'site'
    with zipfile.ZipFile(build(tree, 'build_wheel')) as wheel:
        wheel.extractall(folder)
    return folder


def test_tools_of_a_wheel_run_in_any_folder(
    unpacked: Path, tmp_path: Path
) -> None:
    def call(*args: str) -> subprocess.CompletedProcess:
        folder = tmp_path / 'elsewhere'
        folder.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, '-m', 'anchorformer_mm', *args],
            cwd=folder,
            env=os.environ | {'PYTHONPATH': str(unpacked)},
            capture_output=True,
            text=True,
        )

    listed = call().stdout
    assert f'{unpacked}/anchorformer_mm/.mim/configs' in listed
    assert '  train\n' in listed
    assert 'bootstrap' not in listed
    names = ('picodet_s_coco.py', 'configs/picodet_m_coco.py')
    answer = call('get_flops', *names, '--shape', '64', '64')
    for name in names:
        assert f'| {Path(name).stem} |' in answer.stdout, answer.stderr
    answer = call('trian')
    assert answer.returncode == 2
    assert 'TOOL must be one of ' in answer.stderr
    assert answer.stderr.endswith('got trian\n')


def test_a_config_of_ones_own_goes_before_that_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = 'picodet_s_coco.py'
    carried = resolve_config(name)
    assert Path(carried).read_text() == (ROOT / 'configs' / name).read_text()
    for other in (
        f'mine/{name}',
        'mine.py',
        '--out',
        name[:-3],
        f'./../{name}',
    ):
        assert resolve_config(other) == other
    (tmp_path / name).touch()
    assert resolve_config(name) == name
