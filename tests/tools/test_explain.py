"""Pictures of what models look at, by the command line."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anchorformer_mm.apis import build_model, read_config
from anchorformer_mm.utils import environment
from anchorformer_mm.utils.errors import UsageError

ROOT = Path(__file__).parents[2]
TOOL = 'analysis_tools/explain.py'
CONFIGS = ROOT / 'configs'
# What they are made of, beside the digits' own configs.
MODELS = dict(
    classify='anchorformer_t',
    segment='semfpn_anchorformer_t',
    detect='picodet_anchorformer_t',
    clusters='clustr_t',
    vanilla='anchorformer_t_vanilla',
)
# Height and width of the images.
SIZES = dict(photo=(40, 70), tall=(333, 205), grey=(33, 20))


def save(config):
    """Random weights of the model of a config, beside it."""
    model = build_model(read_config(config))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if hasattr(model, 'decode_head'):
        # It finds threes everywhere.
        model.decode_head.conv_seg.bias.data[4] += 1e4
    content = dict(state_dict=model.state_dict(), meta={})
    torch.save(content, config.with_suffix('.pth'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Configs, weights and images; nothing of it is written to."""
    folder = tmp_path_factory.mktemp('explain')
    torch.manual_seed(0)
    for name, base in MODELS.items():
        config = CONFIGS / f'{base}_digits.py'
        (folder / f'{name}.py').write_text(f'_base_ = {str(config)!r}')
        save(folder / f'{name}.py')
    generator = np.random.default_rng(0)
    for name, size in SIZES.items():
        image = generator.integers(0, 256, (*size, 3), np.uint8)
        cv2.imwrite(str(folder / f'{name}.png'), image)
    (folder / 'text.png').write_text('no image')
    return folder


@pytest.fixture
def explain(folder, tmp_path, monkeypatch, run_tool):
    """Run the tool on a model in the folder; gives status, names, errors."""
    monkeypatch.chdir(folder)

    def call(model, *args):
        out = tmp_path / 'out'
        status, printed, errors = run_tool(
            *(TOOL, f'{model}.py', f'{model}.pth', '--out', str(out), *args)
        )
        lines = printed.splitlines()
        names = [Path(line).name for line in lines if line.endswith('.png')]
        there = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
        assert sorted(names) == there
        for name in names:
            assert cv2.imread(str(out / name)).std() > 1
        return status, names, errors

    return call


def pictures(*kinds, images=('photo',)):
    return [f'{image}_{kind}.png' for image in images for kind in kinds]


ANCHORS = ('anchors', 'assignment')


@pytest.mark.parametrize(
    ('model', 'options', 'kinds'),
    [
        ('classify', '', ANCHORS),
        (
            'classify',
            '--layers 2 0 --heads 0 1 --num-anchors-shown 2 --order mass',
            ANCHORS,
        ),
        ('segment', '', ANCHORS),
        ('detect', '', ANCHORS),
        ('clusters', '', ['clusters']),
        (
            'clusters',
            '--method clusters --layers 1 0 --scales 1 4',
            ['clusters'],
        ),
        ('segment', '--method grad-cam --target three', ['grad_cam']),
    ],
)
def test_every_image_is_drawn(explain, model, options, kinds):
    status, names, _ = explain(
        model, 'photo.png', 'tall.png', *options.split()
    )
    assert status == 0
    assert names == pictures(*kinds, images=('photo', 'tall'))


def test_without_grad_cam_its_package_is_named(explain, monkeypatch):
    def refuse(names):
        if 'pytorch_grad_cam' in names:
            raise UsageError('pip install grad-cam')

    monkeypatch.setattr(environment, 'check_environment', refuse)
    out = explain('classify', 'photo.png', '--method', 'grad-cam')
    assert out == (2, [], ['error: pip install grad-cam'])


@pytest.mark.parametrize(
    ('model', 'args', 'message'),
    [
        ('none', 'photo.png', 'none.pth'),
        ('classify', 'no.png', 'no.png'),
        ('classify', 'photo.png text.png', 'text.png'),
        ('classify', 'photo.png ../photo.png', "'photo'"),
        ('classify', 'photo.png --out text.png', '--out'),
        ('classify', 'photo.png --layers 0 4', 'got 4'),
        ('classify', 'photo.png --heads 3', 'heads'),
        ('classify', 'photo.png --heads mean 1', '--heads'),
        ('classify', 'photo.png --num-anchors-shown 0', 'num_anchors'),
        ('classify', 'photo.png --target cat', '--target'),
        ('classify', 'photo.png --method grad-cam --heads 1', '--heads'),
        ('classify', 'photo.png --method grad-cam --layers 1', '--layers'),
        ('classify', 'photo.png --scales 1', '--scales'),
        ('classify', 'photo.png --method clusters', 'clusters'),
        ('classify', 'photo.png --method grad-cam --target eihgt', 'eight'),
        ('classify', 'photo.png --device sofa', "'sofa'"),
        ('segment', 'photo.png --method grad-cam --target two', 'three'),
        ('detect', 'photo.png --method grad-cam', 'mmdet'),
        ('clusters', 'photo.png --heads 0', '--heads'),
        ('clusters', 'photo.png --scales 1 2', 'got 2'),
        ('clusters', 'photo.png --method anchors', 'anchors'),
        ('vanilla', 'photo.png', 'neither anchors nor clusters'),
    ],
)
def test_bad_input_ends_in_one_message(model, args, message, explain):
    status, names, errors = explain(model, *args.split())
    assert (status, names) == (2, [])
    (line,) = [line for line in errors if line.startswith('error: ')]
    assert message in line
    assert errors[-1] == line
