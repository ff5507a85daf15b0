"""Registries, each time through a fresh interpreter."""

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


SEGMENT = """
import sys, torch, mmseg
from pathlib import Path
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
configs = Path(mmseg.__file__).parent / '.mim/configs'
cfg = Config.fromfile(
    configs / 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
)
assert 'custom_imports' not in cfg
init_default_scope(cfg.default_scope)
cfg.model.backbone = dict(
    type='anchorformer_mm.AnchorFormer',
    arch=dict(
        embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64
    ),
    img_size=64,
    out_type='featmap',
    out_indices=(0, 1, 2, 3),
)
cfg.model.decode_head.in_channels = [32] * 4
model = MODELS.build(cfg.model).eval()
with torch.no_grad():
    print(*model(torch.zeros(1, 3, 64, 96), mode='tensor').shape)
assert not any(n.startswith(('mmdet', 'mmpretrain')) for n in sys.modules)
"""


@pytest.mark.smoke
def test_a_config_of_mmseg_takes_our_backbone_and_needs_nothing_else():
    out = run(SEGMENT, hidden=('mmdet', 'mmpretrain'))
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines()[-1] == '1 150 4 6'


@pytest.mark.parametrize(
    ('name', 'library', 'package', 'user'),
    [
        ('PicoHead', 'mmdet', '(onedl-mmdetection|mmdet)', 'mmseg'),
        ('PicoDet', 'mmdet', '(onedl-mmdetection|mmdet)', 'mmseg'),
        ('TokenPyramid', 'mmseg', '(onedl-)?mmsegmentation', 'mmengine'),
    ],
)
def test_what_needs_a_library_says_so_in_one_sentence(
    name, library, package, user
):
    code = BUILD.format(library=user, name=name)
    out = run(code, hidden=(library,))
    assert out.returncode == 1
    assert re.fullmatch(
        f"ImportError: 'anchorformer_mm.{name}' needs {library}, which is not "
        f'installed: pip install {package}==[0-9.]+',
        out.stderr.splitlines()[-1],
    )


@pytest.mark.parametrize('registry', [MODELS, TASK_UTILS])
def test_every_optional_name_is_registered_by_its_module(registry):
    for name, (_, module) in registry.optional.items():
        cls = registry.get(name)
        assert cls.__module__.startswith(module)
        assert registry.get(f'anchorformer_mm.{name}') is cls


def test_an_unknown_name_is_refused_by_mmengine():
    with pytest.raises(KeyError, match='NoSuchNet'):
        MODELS.build(dict(type='NoSuchNet'))
