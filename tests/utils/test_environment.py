import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anchorformer_mm.utils import environment
from anchorformer_mm.utils.environment import (
    LIBRARIES,
    EnvironmentProblem,
    check_environment,
)
from anchorformer_mm.utils.errors import run_command_line

FORKS = {
    'torch': 'torch 2.13.0',
    'mmengine': 'onedl-mmengine 0.10.12',
    'mmcv': 'onedl-mmcv 2.3.6',
    'mmdet': 'onedl-mmdetection 3.5.1',
}
ORIGINALS = {
    'torch': 'torch 2.13.0',
    'mmengine': 'mmengine 0.10.7',
    'mmcv': 'mmcv 2.1.0',
    'mmdet': 'mmdet 3.3.0',
}


class Site:
    """A site-packages folder whose packages are empty."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, name: str, distribution: str, requires: str = '') -> Path:
        """Add a package and the metadata of ``'distribution version'``."""
        package = self.path / name
        package.mkdir()
        (package / '__init__.py').write_text('raise AssertionError')
        self.describe(distribution, requires)
        return package

    def describe(self, distribution: str, requires: str = '') -> None:
        project, version = distribution.split()
        folder = f'{project.replace("-", "_")}-{version}.dist-info'
        (self.path / folder).mkdir()
        lines = [f'Name: {project}', f'Version: {version}']
        lines += [f'Requires-Dist: {requires}'] if requires else []
        text = '\n'.join(['Metadata-Version: 2.1', *lines, ''])
        (self.path / folder / 'METADATA').write_text(text)

    def add_all(self, libraries: dict[str, str]) -> None:
        for name, distribution in libraries.items():
            self.add(name, distribution)
        (self.path / 'mmcv' / '_ext.so').touch()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The only place where libraries are, whatever this process imported."""
    for name in [*LIBRARIES, environment.SCHEMAS_MODULE]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    return Site(tmp_path)


def findings(*requires: str) -> list[str]:
    with pytest.raises(EnvironmentProblem) as caught:
        check_environment(requires)
    return str(caught.value).split('\n')


@pytest.mark.parametrize('family', [FORKS, ORIGINALS])
def test_either_family_passes(site: Site, family: dict[str, str]) -> None:
    site.add_all(family)
    check_environment(['mmdet'])


def test_every_missing_library_gets_its_own_line(site: Site) -> None:
    lines = findings('mmdet')
    assert [line.split()[0] for line in lines] == [
        'torch',
        'mmengine',
        'mmcv',
        'mmdet',
    ]
    assert lines[-1].endswith("pip install 'onedl-mmdetection>=3.3'")
    pinned = 'onedl-mmdetection==3.5.1; extra == "onedl"'
    site.describe('anchorformer-mm 0.1.0', pinned)
    assert findings('mmdet')[-1] == (
        'mmdet is not installed: pip install onedl-mmdetection==3.5.1'
    )


def test_the_command_stays_with_the_family_that_is_there(site: Site) -> None:
    site.add_all(ORIGINALS)
    assert findings('mmdet', 'mmseg') == [
        "mmseg is not installed: pip install 'mmsegmentation>=1.2'"
    ]


def test_a_library_without_metadata_is_taken_as_new_enough(site: Site) -> None:
    site.add_all({k: v for k, v in FORKS.items() if k != 'mmdet'})
    (site.path / 'mmdet').mkdir()
    (site.path / 'mmdet' / '__init__.py').touch()
    check_environment(['mmdet'])


def test_a_bare_folder_of_that_name_is_no_library(site: Site) -> None:
    site.add_all({k: v for k, v in FORKS.items() if k != 'mmdet'})
    (site.path / 'mmdet').mkdir()
    assert findings('mmdet')[0].startswith('mmdet is not installed')


def test_mmdet_needs_operators(site: Site) -> None:
    site.add_all(ORIGINALS)
    (site.path / 'mmcv' / '_ext.so').unlink()
    check_environment(['mmcv'])
    (line,) = findings('mmdet')
    assert line.startswith('this mmcv has no operators, which mmdet needs: ')
    assert line.endswith('mmcv_ops')
    (site.path / 'mmcv' / '_ext.py').touch()
    check_environment(['mmdet'])


def test_compiled_operators_that_do_not_load(site: Site) -> None:
    site.add_all(FORKS)

    def main() -> None:
        path = str(site.path / 'mmcv/_ext.so')
        raise ImportError('undefined symbol', path=path)

    with pytest.raises(SystemExit):
        run_command_line(main)
    with pytest.raises(ImportError):
        run_command_line(lambda: importlib.import_module('not_there'))


@pytest.mark.parametrize(
    ('running', 'threads'), [(1, '4'), (2, '3'), (4, '1'), (9, '1')]
)
def test_threads_are_idle_cores(
    running: int, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = f'0.1 0.2 0.3 {running}/999 1234'
    monkeypatch.setattr(Path, 'read_text', lambda path: load)
    monkeypatch.setattr(Path, 'exists', lambda path: True)
    monkeypatch.setattr(environment.os, 'cpu_count', lambda: 4)
    monkeypatch.setattr(
        environment.os,
        'sched_getaffinity',
        lambda process: {0, 1, 2, 3},
        raising=False,
    )
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    environment.use_idle_cores()
    assert os.environ['OMP_NUM_THREADS'] == threads
    monkeypatch.setenv('OMP_NUM_THREADS', '7')
    environment.use_idle_cores()
    assert os.environ['OMP_NUM_THREADS'] == '7'


def test_two_families_are_refused_with_one_command(site: Site) -> None:
    site.add_all(FORKS)
    site.describe('mmengine 0.10.7')
    (line,) = findings('mmdet')
    assert 'mmengine 0.10.7, onedl-mmengine 0.10.12' in line
    assert (
        'pip uninstall -y mmengine onedl-mmengine onedl-mmcv '
        'onedl-mmdetection' in line
    )


@pytest.mark.parametrize(
    ('library', 'distribution', 'requires', 'start', 'end'),
    [
        (
            'torch',
            'torch 2.0.1+cpu',
            '',
            'torch 2.0.1+cpu is too old, 2.1 or newer is needed: ',
            "pip install 'torch>=2.1'",
        ),
        (
            'torchvision',
            'torchvision 0.20.0',
            'torch (==2.5.0)',
            'torchvision 0.20.0 needs torch==2.5.0, but torch is 2.13.0: ',
            'pip install --no-deps torchvision==0.28.*',
        ),
        (
            'transformers',
            'transformers 5.0.1',
            '',
            'transformers 5.0.1 breaks the import of mmpretrain',
            "pip install 'transformers<5'",
        ),
    ],
)
def test_one_of_a_wrong_version_is_told_with_the_command(
    site: Site,
    library: str,
    distribution: str,
    requires: str,
    start: str,
    end: str,
) -> None:
    others = FORKS | {'mmpretrain': 'onedl-mmpretrain 1.3.6'}
    site.add_all({k: v for k, v in others.items() if k != library})
    site.add(library, distribution, requires)
    (line,) = findings('mmdet')
    assert line.startswith(start)
    assert line.endswith(end)


class TestCudaTorchvisionBesideCpuTorch:
    @pytest.fixture(autouse=True)
    def broken(self, site: Site) -> None:
        site.add_all(FORKS | {'torch': 'torch 2.13.0+cpu'})
        requires = 'torch (==2.13.0)'
        package = site.add('torchvision', 'torchvision 0.28.0', requires)
        (package / '_C.so').write_bytes(b'\0libtorch_cuda.so\0')

    def test_it_is_found(self) -> None:
        (line,) = findings('mmdet')
        assert line.startswith(
            'torchvision 0.28.0 is a CUDA build beside the CPU build torch '
            '2.13.0+cpu: pip install --force-reinstall --no-deps '
            'torchvision==0.28.0+cpu'
        )

    def test_it_is_fine_with_a_cuda_torch(self, site: Site) -> None:
        (site.path / 'torch' / 'lib').mkdir()
        (site.path / 'torch' / 'lib' / 'libtorch_cuda.so').touch()
        check_environment(['mmdet'])

    def test_it_is_fine_once_the_operators_are_declared(
        self, site: Site
    ) -> None:
        (site.path / f'{environment.SCHEMAS_MODULE}.py').touch()
        check_environment(['mmdet'])


@pytest.mark.smoke
def test_this_environment_passes_and_nothing_heavy_is_imported() -> None:
    code = (
        'import sys\n'
        'from anchorformer_mm.utils import check_environment\n'
        "check_environment(['mmdet', 'mmseg', 'mmpretrain'])\n"
        "heavy = {'torch', 'numpy', 'mmengine', 'mmcv', 'torchvision'}\n"
        'sys.exit(str(heavy & set(sys.modules)) if '
        'heavy & set(sys.modules) else 0)'
    )
    answer = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
