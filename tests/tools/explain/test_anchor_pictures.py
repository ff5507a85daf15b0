"""Pictures of anchors."""

import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[3]


def shape(path):
    return cv2.imread(str(path)).shape[:2]


@pytest.mark.smoke
def test_anchors_of_a_classifier(folder, tool, tmp_path):
    out = subprocess.run(
        [sys.executable, tool, 'classify.py', 'classify.pth']
        + ['photo.png', 'grey.png', '--out', tmp_path / 'new'],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    names = [
        f'{name}_{kind}.png'
        for name in ('photo', 'grey')
        for kind in ('anchors', 'assignment')
    ]
    paths = [tmp_path / 'new' / name for name in names]
    assert out.stdout.splitlines()[-4:] == [str(path) for path in paths]
    assert sorted(tmp_path.glob('new/*')) == sorted(paths)
    # Three layers; the input and five anchors. Images become 32 x 48 px.
    row = 32 + 149 + 8
    for path in paths[::2]:
        assert shape(path) == (8 + 3 * row, 8 + 6 * 232)
    # The input and three layers, with three lines and a legend.
    for path in paths[1::2]:
        height, width = shape(path)
        assert width == 8 + 4 * 232
        assert 8 + 48 + 149 + 16 <= height <= 8 + 48 + 149 + 48


def test_layers_heads_and_anchors_are_chosen(explain, tmp_path):
    arguments = ['--layers', 2, 0, '--heads', 0, 1]
    arguments += ['--num-anchors-shown', 2, '--order', 'mass']
    status, lines, _ = explain(
        'classify.py', 'classify.pth', 'photo.png', *arguments
    )
    assert status == 0
    assert lines[-2:] == [
        str(tmp_path / 'out' / f'photo_{kind}.png')
        for kind in ('anchors', 'assignment')
    ]
    row = 32 + 149 + 8
    assert shape(lines[-2]) == (8 + 4 * row, 8 + 3 * 232)


def test_anchors_of_a_segmentor(explain, photo_sizes):
    # They are padded to multiples of 16 px, and drawn as they were.
    images = [f'{name}.png' for name in photo_sizes]
    status, lines, errors = explain('segment.py', 'segment.pth', *images)
    assert status == 0, errors[-5:]
    for (h, w), maps, assignment in zip(
        photo_sizes.values(), lines[-6::2], lines[-5::2], strict=True
    ):
        scale = 224 / max(h, w)
        picture, slot = round(h * scale), round(w * scale)
        # Input and five anchors of three layers, with two lines of title;
        # with four above narrow ones.
        rows = 32 if slot == 224 else 64
        expected = (8 + 3 * (rows + picture + 8), 8 + 6 * (slot + 8))
        assert shape(maps) == expected
        assert shape(assignment)[1] == 8 + 4 * (slot + 8)


def test_anchors_picked_among_the_queries_of_a_segmentor(
    explain, folder, save_weights, tmp_path
):
    cfg = Config.fromfile(folder / 'segment.py')
    cfg.model.backbone.attention = 'query'
    save_weights(tmp_path / 'query.pth', cfg, {})
    options = ['--cfg-options', 'model.backbone.attention=query']
    status, lines, errors = explain(
        'segment.py', tmp_path / 'query.pth', 'photo.png', *options
    )
    assert status == 0, errors[-5:]
    assert shape(lines[-2]) == (8 + 3 * (32 + 128 + 8), 8 + 6 * 232)


def test_anchors_of_a_detector(explain, save_weights, tmp_path):
    config = ROOT / 'configs' / 'picodet_anchorformer_t_digits.py'
    save_weights(tmp_path / 'detector.pth', Config.fromfile(config), {})
    status, lines, errors = explain(
        config, tmp_path / 'detector.pth', 'photo.png', '--heads', 'mean'
    )
    assert status == 0, errors[-5:]
    height, width = shape(lines[-2])
    assert width == 8 + 7 * 232
    assert height >= 2 * (2 * 16 + 100)
