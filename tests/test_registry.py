"""The door, each time through a fresh interpreter."""

import re
import subprocess
import sys

import pytest

from anchorformer_mm.registry import MODELS, TASK_UTILS

# Makes a library look as if it were not installed.
HIDE = """
import importlib.machinery as machinery
hidden, find = {hidden!r}, machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *args: None if name in hidden else find(name, *args)
)
"""


def run(code, hidden=()):
    return subprocess.run(
        [sys.executable, '-c', HIDE.format(hidden=hidden) + code],
        capture_output=True,
        text=True,
    )


BUILD = """
import sys
from {library}.registry import MODELS
from mmengine.registry import init_default_scope
init_default_scope({library!r})
net = MODELS.build(dict(type='anchorformer_mm.{name}'))
print(type(net).__name__)
"""


@pytest.mark.smoke
@pytest.mark.parametrize('library', ['mmdet', 'mmseg', 'mmpretrain'])
def test_every_library_builds_our_backbones_without_custom_imports(library):
    out = run(BUILD.format(library=library, name='AnchorESNet'))
    assert out.returncode == 0, out.stderr
    assert out.stdout.split()[-1] == 'AnchorESNet'


@pytest.mark.parametrize('library', ['mmseg', 'mmengine'])
def test_backbones_build_without_mmdet(library):
    code = BUILD.format(library=library, name='ESNet')
    code += "assert not any(n.startswith('mmdet') for n in sys.modules)"
    out = run(code, hidden=('mmdet',))
    assert out.returncode == 0, out.stderr
    assert out.stdout.split()[-1] == 'ESNet'


@pytest.mark.parametrize('name', ['PicoHead', 'PicoDet'])
def test_what_needs_mmdet_says_so_in_one_sentence(name):
    code = BUILD.format(library='mmseg', name=name)
    out = run(code, hidden=('mmdet',))
    assert out.returncode == 1
    assert re.fullmatch(
        f"ImportError: 'anchorformer_mm.{name}' needs mmdet, which is not "
        r'installed: pip install (onedl-mmdetection|mmdet)==[0-9.]+',
        out.stderr.splitlines()[-1],
    )


def test_importing_the_package_imports_no_library():
    out = run(
        'import sys, anchorformer_mm\n'
        "heavy = {'torch', 'mmengine', 'mmcv', 'mmdet'} & set(sys.modules)\n"
        'assert not heavy, heavy'
    )
    assert out.returncode == 0, out.stderr


@pytest.mark.parametrize('registry', [MODELS, TASK_UTILS])
def test_every_optional_name_is_registered_by_its_module(registry):
    for name, (_, module) in registry.optional.items():
        cls = registry.get(name)
        assert cls.__module__.startswith(module)
        assert registry.get(f'anchorformer_mm.{name}') is cls


def test_an_unknown_name_is_refused_by_mmengine():
    with pytest.raises(KeyError, match='NoSuchNet'):
        MODELS.build(dict(type='NoSuchNet'))
