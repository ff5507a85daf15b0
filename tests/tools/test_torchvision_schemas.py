"""The module that lets a torchvision without its operators be imported.

A fake torchvision does what the real one does at import, with the real torch.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import bootstrap
import pytest

MISC = Path(__file__).resolve().parents[2] / 'tools' / 'misc'

REGISTER = """
import torch
@torch.library.register_fake('torchvision::nms')
def nms(dets, scores, iou_threshold):
    return dets.new_empty(0)
"""
HEALTHY = """
import torch
library = torch.library.Library('torchvision', 'FRAGMENT')
library.define('nms(Tensor dets, Tensor scores, float t) -> Tensor')
library.define('qnms(Tensor dets, Tensor scores, float t) -> Tensor')
"""


def import_torchvision(site: Path) -> subprocess.CompletedProcess[str]:
    """Start an interpreter with the fake torchvision, then import it."""
    libraries = Path(find_spec('torch').origin).parents[1]
    code = (
        'import site, sys\n'
        f'sys.path.insert(0, {str(site)!r})\n'
        f'sys.path.append({str(libraries)!r})\n'
        f'site.addsitedir({str(site)!r})\n'
        "assert 'torch' not in sys.modules, 'torch was imported at start'\n"
        'finders = len(sys.meta_path)\n'
        'import torchvision, torch\n'
        'print(torch.ops.torchvision.nms.default._schema)\n'
        'print(finders - len(sys.meta_path))\n'
    )
    return subprocess.run(
        [sys.executable, '-I', '-S', '-c', code],
        capture_output=True,
        text=True,
    )


@pytest.fixture
def fake_site(tmp_path: Path) -> Path:
    package = tmp_path / 'torchvision'
    package.mkdir()
    for name, text in {
        '__init__': 'from . import extension, _meta_registrations',
        'extension': 'import torch',
        '_meta_registrations': REGISTER,
    }.items():
        (package / f'{name}.py').write_text(text)
    return tmp_path


def test_the_schemas_let_a_broken_torchvision_be_imported(
    fake_site: Path,
) -> None:
    broken = import_torchvision(fake_site)
    assert 'operator torchvision::nms does not exist' in broken.stderr
    bootstrap.install_schemas(fake_site)
    mended = import_torchvision(fake_site)
    assert mended.returncode == 0, mended.stderr
    schema, finders_removed = mended.stdout.splitlines()
    assert schema.endswith('float iou_threshold) -> Tensor')
    assert finders_removed == '1'
    assert not list(fake_site.glob('*.partial'))


def test_a_healthy_torchvision_keeps_its_own_operators(
    fake_site: Path,
) -> None:
    (fake_site / 'torchvision' / 'extension.py').write_text(HEALTHY)
    bootstrap.install_schemas(fake_site)
    answer = import_torchvision(fake_site)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[0].endswith('float t) -> Tensor')
