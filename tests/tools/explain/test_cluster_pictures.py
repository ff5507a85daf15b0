"""Pictures of clusters."""

from pathlib import Path

import cv2
import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[3]
BACKBONE = """dict(
    {more} type='anchorformer_mm.ClusTR',
    arch=dict(embed_dims=(16, 16, 32, 32), num_heads=(1, 1, 2, 2),
              num_layers=(1, 1, 2, 1), mlp_ratios=(2, 2, 2, 2)))"""
CLASSIFIER = f"""
_base_ = ['{{folder}}/classify.py']
model = dict(
    backbone={BACKBONE.format(more='_delete_=True, out_indices=(3,),')},
    neck=dict(type='GlobalAveragePooling'),
    head=dict(_delete_=True, type='LinearClsHead', num_classes=3,
              in_channels=32))
"""
SEGMENTOR = f"""
_base_ = ['{{folder}}/segment.py']
model = dict(
    backbone={BACKBONE.format(more='_delete_=True,')},
    neck=None,
    decode_head=dict(in_channels=[16, 16, 32, 32]))
"""
DETECTOR = f"""
_base_ = ['{ROOT}/configs/picodet_anchorformer_t_digits.py']
model = dict(
    backbone={BACKBONE.format(more='_delete_=True, out_indices=(1, 2, 3),')},
    neck=dict(in_channels=[16, 32, 32]))
"""


@pytest.fixture
def prepare(folder, tmp_path, save_weights):
    """Config and weights of a model with clusters, as arguments."""

    def write(text):
        config = tmp_path / 'config.py'
        config.write_text(text.replace('{folder}', str(folder)))
        weights = tmp_path / 'weights.pth'
        save_weights(weights, Config.fromfile(config), {})
        return config, weights

    return write


def test_clusters_of_a_classifier(explain, prepare, tmp_path):
    status, lines, errors = explain(
        *prepare(CLASSIFIER), 'photo.png', 'grey.png'
    )
    assert status == 0, errors[-5:]
    paths = [
        tmp_path / 'out' / f'{name}_clusters.png' for name in ('photo', 'grey')
    ]
    assert lines[-2:] == [str(path) for path in paths]
    assert sorted(tmp_path.glob('out/*')) == sorted(paths)
    for path in paths:
        # The input and three stages; images become 32 x 48 px.
        sheet = cv2.imread(str(path))
        assert sheet.shape == (8 + 48 + 224 + 8, 8 + 4 * 344, 3)
        pictures = [sheet[56:280, x : x + 336] for x in range(8, 1384, 344)]
        # So small a map has one cluster.
        for picture in pictures[1:]:
            assert (picture == picture[0, 0]).all()
            difference = picture[0, 0] - pictures[0].mean(axis=(0, 1))
            assert abs(difference).max() < 3


def test_layers_and_scales_are_chosen(explain, prepare):
    arguments = ['--method', 'clusters', '--layers', 3, 0, '--scales', 1, 4]
    status, lines, errors = explain(
        *prepare(CLASSIFIER), 'photo.png', *arguments
    )
    assert status == 0, errors[-5:]
    sheet = cv2.imread(lines[-1])
    assert sheet.shape == (8 + 2 * (48 + 224 + 8), 8 + 3 * 344, 3)
    one, four = sheet[56:280, 352:688], sheet[56 + 280 : 560, 352:688]
    assert (one == one[0, 0]).all()
    # The last block of six tokens: each 112 px wide, its middle has no line.
    assert (
        len({tuple(four[y, x]) for y in (56, 168) for x in (56, 168, 280)})
        == 4
    )


def test_clusters_of_a_segmentor(explain, prepare, photo_sizes):
    # They are padded to multiples of 16 px, and drawn as they were.
    images = [f'{name}.png' for name in photo_sizes]
    status, lines, errors = explain(*prepare(SEGMENTOR), *images)
    assert status == 0, errors[-5:]
    for (h, w), path in zip(photo_sizes.values(), lines[-3:], strict=True):
        scale = 336 / max(h, w)
        height, width = round(h * scale), round(w * scale)
        sheet = cv2.imread(path)
        assert sheet.shape[1] == 8 + 4 * (width + 8)
        assert 0 <= len(sheet) - (8 + 48 + height + 8) <= 16


def test_clusters_of_a_detector(explain, prepare):
    status, lines, errors = explain(*prepare(DETECTOR), 'photo.png')
    assert status == 0, errors[-5:]
    assert lines[-1].endswith('photo_clusters.png')
    assert cv2.imread(lines[-1]).shape[1] == 8 + 4 * 344


def test_grad_cam_has_its_default_layer(explain, prepare):
    status, lines, errors = explain(
        *prepare(CLASSIFIER), 'photo.png', '--method', 'grad-cam'
    )
    assert status == 0, errors[-5:]
    assert lines[-1].endswith('photo_grad_cam.png')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            '--layers 4',
            'the layers with clusters are 0 to 3, '
            'backbone.stages.0.blocks.0.attn to '
            'backbone.stages.2.blocks.1.attn; got 4',
        ),
        (
            '--scales 1 2',
            'scales of backbone.stages.0.blocks.0.attn are 1, 4; got 2',
        ),
        (
            '--heads 0',
            '--heads is of --method anchors only, not of clusters',
        ),
        ('--method anchors', 'no layer of the model tells what its anchors'),
    ],
)
def test_bad_arguments_end_in_one_message(
    arguments, message, explain, prepare, tmp_path
):
    status, _, errors = explain(
        *prepare(CLASSIFIER), 'photo.png', *arguments.split()
    )
    assert status == 2
    assert errors[-1].startswith(f'error: {message}')
    assert not (tmp_path / 'out').exists()
