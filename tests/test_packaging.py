"""What a wheel and an editable install of the project carry."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CARRIED = {'configs', 'tools', 'model-index.yml'}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the build reads, so that it leaves nothing behind."""
    copy = tmp_path / 'tree'
    copy.mkdir()
    ignore = shutil.ignore_patterns('.mim*', '__pycache__')
    for name in ['anchorformer_mm', 'configs', 'tools']:
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


def test_the_model_index_names_configs_that_exist() -> None:
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    for file in index['Import']:
        metafile = yaml.safe_load((ROOT / file).read_text())
        collections = {item['Name'] for item in metafile['Collections']}
        for model in metafile['Models']:
            assert model['Config'] == f'configs/{model["Name"]}.py'
            assert (ROOT / model['Config']).is_file()
            assert model['In Collection'] in collections


def test_importing_the_package_imports_no_library() -> None:
    code = (
        'import sys, anchorformer_mm\n'
        "print({'torch', 'numpy', 'mmengine', 'mmcv'} & set(sys.modules))"
    )
    answer = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT
    )
    assert answer.stdout == 'set()\n', answer.stderr
