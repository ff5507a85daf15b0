"""The command line, on models that are not trained."""

import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from anchorformer_mm.datasets import (
    SEGMENTATION_CLASSES,
    SEGMENTATION_PALETTE,
)
from anchorformer_mm.utils import environment

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'analysis_tools' / 'explain.py'
BACKBONE = """dict(
    type='anchorformer_mm.AnchorFormer',
    arch=dict(embed_dims=16, num_layers=3, num_heads=2,
              feedforward_channels=16),
    img_size=32, patch_size=8, num_anchors=5, {more})"""
CLASSIFIER = f"""
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone={BACKBONE.format(more='')},
    head=dict(type='VisionTransformerClsHead', num_classes=3, in_channels=16))
data_preprocessor = dict(mean=[128.] * 3, std=[64.] * 3, to_rgb=True)
test_dataloader = dict(dataset=dict(
    type='CustomDataset', data_root='not/there', ann_file='not/there.txt',
    pipeline=[dict(type='LoadImageFromFile'),
              dict(type='Resize', scale=(48, 32)),
              dict(type='PackInputs')]))
"""
SEGMENTOR = f"""
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', bgr_to_rgb=True,
                           mean=[128.] * 3, std=[64.] * 3,
                           size_divisor=16, test_cfg=dict(size_divisor=16)),
    backbone={BACKBONE.format(more="out_type='featmap'")},
    neck=dict(type='MultiLevelNeck', in_channels=[16], out_channels=8,
              scales=[2, 1, 0.5, 0.25]),
    decode_head=dict(type='FPNHead', in_channels=[8] * 4,
                     in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32],
                     channels=8, num_classes=11, norm_cfg=dict(type='BN')),
    test_cfg=dict(mode='whole'))
test_dataloader = dict(dataset=dict(
    type='BaseSegDataset', data_root='not/there',
    pipeline=[dict(type='LoadImageFromFile'),
              dict(type='Resize', scale_factor=1.0),
              dict(type='LoadAnnotations'), dict(type='PackSegInputs')]))
"""
# Height and width of the photos of a segmentor.
SIZES = dict(photo=(40, 70), square=(192, 192), tall=(333, 205))


def save(path, cfg, meta):
    """Weights of the model of a config, at random."""
    DefaultScope._instance_dict.clear()
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Configs, weights and images; nothing of it is written to."""
    folder = tmp_path_factory.mktemp('explain')
    torch.manual_seed(0)
    metas = dict(
        classify=dict(classes=['cat', 'dog', 'sea snake']),
        segment=dict(
            classes=SEGMENTATION_CLASSES, palette=SEGMENTATION_PALETTE
        ),
    )
    for name, text in (('classify', CLASSIFIER), ('segment', SEGMENTOR)):
        (folder / f'{name}.py').write_text(text)
        save(
            folder / f'{name}.pth',
            Config.fromfile(folder / f'{name}.py'),
            dict(dataset_meta=metas[name]),
        )
    # The segmentor finds threes everywhere.
    content = torch.load(folder / 'segment.pth', weights_only=True)
    content['state_dict']['decode_head.conv_seg.bias'][4] += 100
    torch.save(content, folder / 'segment.pth')
    generator = np.random.default_rng(0)
    shapes = {name: (*size, 3) for name, size in SIZES.items()}
    for name, shape in (*shapes.items(), ('grey', (33, 20))):
        image = generator.integers(0, 256, shape, np.uint8)
        cv2.imwrite(str(folder / f'{name}.png'), image)
    (folder / 'text.png').write_text('no image')
    DefaultScope._instance_dict.clear()
    return folder


@pytest.fixture
def explain(folder, tmp_path, monkeypatch, capfd):
    """Run the tool in the folder; gives status, lines printed, and errors."""
    monkeypatch.chdir(folder)

    def call(*args, out=tmp_path / 'out'):
        argv = [str(TOOL), *map(str, args), '--out', str(out)]
        monkeypatch.setattr(sys, 'argv', argv)
        status = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as end:
            status = end.code
        printed = capfd.readouterr()
        return status, printed.out.splitlines(), printed.err.splitlines()

    return call


def shape(path):
    return cv2.imread(str(path)).shape[:2]


@pytest.mark.smoke
def test_anchors_of_a_classifier(folder, tmp_path):
    out = subprocess.run(
        [sys.executable, TOOL, 'classify.py', 'classify.pth']
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


def test_anchors_of_a_segmentor(explain):
    # They are padded to multiples of 16 px, and drawn as they were.
    images = [f'{name}.png' for name in SIZES]
    status, lines, errors = explain('segment.py', 'segment.pth', *images)
    assert status == 0, errors[-5:]
    for (h, w), maps, assignment in zip(
        SIZES.values(), lines[-6::2], lines[-5::2], strict=True
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
    explain, folder, tmp_path
):
    cfg = Config.fromfile(folder / 'segment.py')
    cfg.model.backbone.attention = 'query'
    save(tmp_path / 'query.pth', cfg, {})
    options = ['--cfg-options', 'model.backbone.attention=query']
    status, lines, errors = explain(
        'segment.py', tmp_path / 'query.pth', 'photo.png', *options
    )
    assert status == 0, errors[-5:]
    assert shape(lines[-2]) == (8 + 3 * (32 + 128 + 8), 8 + 6 * 232)


def test_anchors_of_a_detector(explain, tmp_path):
    config = ROOT / 'configs' / 'picodet_anchorformer_t_digits.py'
    save(tmp_path / 'detector.pth', Config.fromfile(config), {})
    status, lines, errors = explain(
        config, tmp_path / 'detector.pth', 'photo.png', '--heads', 'mean'
    )
    assert status == 0, errors[-5:]
    height, width = shape(lines[-2])
    assert width == 8 + 7 * 232
    assert height >= 2 * (2 * 16 + 100)


def test_grad_cam_of_a_classifier(explain, tmp_path):
    args = ('classify.py', 'classify.pth', 'photo.png', '--method', 'grad-cam')
    pictures = []
    for i, more in enumerate(
        [
            ('--target', 'sea snake'),
            ('--target', 2),
            ('--target', 'cat'),
            ('--target', 'cat', '--target-layer', 'backbone.layers.0'),
            (),
        ]
    ):
        out = tmp_path / str(i)
        status, lines, errors = explain(*args, *more, out=out)
        assert status == 0, errors[-5:]
        assert lines[-1] == str(out / 'photo_grad_cam.png')
        assert [path.name for path in out.iterdir()] == ['photo_grad_cam.png']
        pictures.append(cv2.imread(lines[-1]))
        # A line or two above.
        assert pictures[-1].shape[1] == 8 + 2 * (336 + 8)
        assert pictures[-1].shape[0] in (8 + 16 + 224 + 8, 8 + 32 + 224 + 8)
    same = [np.array_equal(pictures[0], picture) for picture in pictures]
    assert same[:4] == [True, True, False, False]
    assert not np.array_equal(pictures[2], pictures[3])


def test_grad_cam_of_a_segmentor(explain, tmp_path):
    images = [f'{name}.png' for name in SIZES]
    status, lines, errors = explain(
        'segment.py', 'segment.pth', *images, '--method', 'grad-cam'
    )
    assert status == 0, errors[-5:]
    names = [f'{name}_grad_cam.png' for name in SIZES]
    assert lines[-3:] == [str(tmp_path / 'out' / name) for name in names]
    for (h, w), path in zip(SIZES.values(), lines[-3:], strict=True):
        scale = 336 / max(h, w)
        h, w = round(h * scale), round(w * scale)
        picture = cv2.imread(path)[..., ::-1]
        # One line of title, and one of the legend.
        assert picture.shape[:2] == (8 + 16 + h + 16 + 8, 8 + 3 * (w + 8))
        middle = picture[24 : 24 + h, 16 + w : 16 + 2 * w]
        assert (middle == SEGMENTATION_PALETTE[4]).all()


def test_class_and_layer_of_a_segmentor_are_chosen(explain, tmp_path):
    args = ('segment.py', 'segment.pth', 'square.png', '--method', 'grad-cam')
    pictures = []
    for i, more in enumerate(
        [
            ('--target', 'three'),
            ('--target', 4),
            (),
            ('--target-layer', 'backbone.layers.2'),
            ('--target-layer', 'backbone.layers.0'),
        ]
    ):
        status, lines, errors = explain(*args, *more, out=tmp_path / str(i))
        assert status == 0, errors[-5:]
        pictures.append(cv2.imread(lines[-1]))
    same = [np.array_equal(pictures[0], picture) for picture in pictures]
    assert same == [True, True, True, True, False]


def test_class_names_come_from_the_config_if_need_be(
    explain, folder, tmp_path
):
    content = torch.load(folder / 'classify.pth', weights_only=True)
    torch.save(dict(content, meta={}), tmp_path / 'bare.pth')
    args = ['classify.py', tmp_path / 'bare.pth', 'photo.png']
    args += ['--method', 'grad-cam', '--target', 'bird', '--cfg-options']
    args += ['test_dataloader.dataset.type=CIFAR10']
    assert explain(*args)[0] == 0
    # The model has three classes, the data set ten.
    args[args.index('bird')] = 'frog'
    status, _, errors = explain(*args)
    assert status == 2
    assert 'a class from 0 to 2, or a name such as airplane' in errors[-1]
    args += ['test_dataloader.dataset.metainfo.classes=[fish,frog]']
    assert explain(*args)[0] == 0


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
            '--heads is of --method anchors only',
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
            'text.png is no checkpoint of the model of the config: ',
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


def test_a_model_without_anchors_is_told(explain, tmp_path, folder):
    cfg = Config.fromfile(folder / 'classify.py')
    cfg.model.backbone.attention = 'vanilla'
    save(tmp_path / 'vanilla.pth', cfg, {})
    status, _, errors = explain(
        'classify.py',
        tmp_path / 'vanilla.pth',
        'photo.png',
        '--cfg-options',
        'model.backbone.attention=vanilla',
    )
    assert status == 2
    assert errors[-1].startswith('error: no layer of the model tells')


def test_without_grad_cam_its_package_is_named(explain, monkeypatch):
    find = environment._spec
    monkeypatch.setattr(
        environment,
        '_spec',
        lambda name: None if name == 'pytorch_grad_cam' else find(name),
    )
    status, _, errors = explain(
        'classify.py', 'classify.pth', 'photo.png', '--method', 'grad-cam'
    )
    assert status == 2
    assert errors[-1] == (
        'error: pytorch_grad_cam is not installed: pip install grad-cam==1.5.5'
    )
