"""What the command line refuses."""

import pytest
from mmengine.config import Config


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('no.py classify.pth photo.png', 'config not found: no.py'),
        (
            'classify.py no.pth photo.png',
            'checkpoint not found: no.pth',
        ),
        ('classify.py classify.pth no.png', 'image not found: no.png'),
        (
            'classify.py classify.pth photo.png text.png',
            'not an image that OpenCV can read: text.png',
        ),
        (
            'classify.py classify.pth photo.png ../photo.png',
            "several images are named 'photo', and so would be their "
            'pictures: explain them with another --out each',
        ),
        (
            'classify.py classify.pth photo.png --layers 0 3',
            'the layers with anchors are 0 to 2, backbone.layers.0.attn to '
            'backbone.layers.2.attn; got 3',
        ),
        (
            'classify.py classify.pth photo.png --heads 2',
            'heads of backbone.layers.0.attn are 0 to 1, got 2',
        ),
        (
            'classify.py classify.pth photo.png --heads mean 1',
            "--heads must be numbers from 0, or 'mean'; got mean 1",
        ),
        (
            'classify.py classify.pth photo.png --num-anchors-shown 0',
            'num_anchors must be >= 1, got 0',
        ),
        (
            'classify.py classify.pth photo.png --target cat',
            '--target is of --method grad-cam only',
        ),
        (
            'classify.py classify.pth photo.png --method grad-cam --heads 1',
            '--heads is of --method anchors only, not of grad-cam',
        ),
        (
            'classify.py classify.pth photo.png --method grad-cam --layers 1',
            '--layers is of --method anchors or clusters only, not of',
        ),
        (
            'classify.py classify.pth photo.png --scales 1',
            '--scales is of --method clusters only, not of anchors',
        ),
        (
            'classify.py classify.pth photo.png --method clusters',
            'no layer of the model makes clusters to draw',
        ),
        (
            'classify.py classify.pth photo.png --method grad-cam '
            '--target dgo',
            'target must be a class from 0 to 2, or a name such as dog; got '
            "'dgo'",
        ),
        (
            'segment.py segment.pth photo.png --method grad-cam --target two',
            'photo.png: two is found nowhere in the image, and Grad-CAM '
            'explains pixels of a class that is: three',
        ),
        (
            'segment.py segment.pth photo.png --method grad-cam '
            '--target-layer neck',
            'photo.png: layer neck gives no map: ',
        ),
        (
            'segment.py segment.pth photo.png --method grad-cam '
            '--cfg-options default_scope=mmdet',
            '--method grad-cam is for classifiers of mmpretrain and '
            'segmentors of mmseg; segment.py is of mmdet',
        ),
        (
            'classify.py classify.pth photo.png --device sofa',
            "device 'sofa': ",
        ),
        (
            'classify.py text.png photo.png',
            'text.png cannot be read as weights and plain data (',
        ),
        (
            'classify.py segment.pth photo.png',
            'segment.pth is no checkpoint of the model of the config: '
            'RuntimeError: The model and loaded state dict do not match',
        ),
        (
            'classify.py classify.pth photo.png --cfg-options '
            'model.backbone.attention=vanilla',
            'classify.pth is no checkpoint of the model of the config: '
            'RuntimeError: ',
        ),
    ],
)
def test_bad_input_ends_in_one_message(args, message, explain, tmp_path):
    status, _, errors = explain(*args.split())
    assert status == 2
    (line,) = [line for line in errors if line.startswith('error: ')]
    assert line.startswith(f'error: {message}')
    assert errors[-1] == line
    assert not (tmp_path / 'out').exists()


def test_a_file_is_no_folder_for_pictures(explain, folder):
    status, _, errors = explain(
        'classify.py', 'classify.pth', 'photo.png', out=folder / 'grey.png'
    )
    assert status == 2
    assert errors[-1].startswith('error: --out must be a folder, got the ')


def test_a_model_without_anchors_and_clusters_is_told(
    explain, folder, save_weights, tmp_path
):
    cfg = Config.fromfile(folder / 'classify.py')
    cfg.model.backbone.attention = 'vanilla'
    save_weights(tmp_path / 'vanilla.pth', cfg, {})
    status, _, errors = explain(
        'classify.py',
        tmp_path / 'vanilla.pth',
        'photo.png',
        '--cfg-options',
        'model.backbone.attention=vanilla',
    )
    assert status == 2
    assert errors[-1].startswith(
        'error: the model has neither anchors nor clusters to draw'
    )
