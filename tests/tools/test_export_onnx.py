"""The command line; the files themselves: see deployment/test_export.py."""

import json
import runpy
import sys
from pathlib import Path

import onnx
import pytest
import torch

from anchorformer_mm.deployment import export as exporting

TOOL = Path(__file__).parents[2] / 'tools/deployment/export_onnx.py'
CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        mean=[90, 110, 130], std=[50, 60, 70], to_rgb=True),
    backbone=dict(
        type='anchorformer_mm.AnchorFormer',
        arch=dict(embed_dims=8, num_layers=1, num_heads=2,
                  feedforward_channels=16),
        img_size=32, patch_size=8, num_anchors=5),
    head=dict(type='VisionTransformerClsHead', num_classes=3, in_channels=8))
test_dataloader = dict(dataset=dict(
    type='CustomDataset',
    metainfo=dict(classes=['a', 'b', 'c']),
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='ResizeEdge', scale=40),
        dict(type='CenterCrop', crop_size=32),
        dict(type='PackInputs'),
    ]))
"""


@pytest.fixture
def export(tmp_path, monkeypatch, capfd):
    """Run the tool beside a config; gives status, output, errors."""
    (tmp_path / 'x.py').write_text(CONFIG)
    monkeypatch.chdir(tmp_path)

    def call(*args):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), 'x.py', *args])
        status = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as exit_:
            status = exit_.code
        out, err = capfd.readouterr()
        return status, out, err

    return call


def test_a_file_and_what_is_said_of_it(export):
    status, out, err = export('--out', 'x.onnx', '--batch-size', '2')
    assert status == 0
    assert 'the weights are random' in err
    assert 'input images: float (2, 3, 32, 32)' in out
    assert 'output scores: float (2, 3)' in out
    assert 'opset 17' in out
    assert 'operators: Add ' in out
    assert 'difference from the model: ' in out
    props = {p.key: p.value for p in onnx.load('x.onnx').metadata_props}
    assert props['task'] == 'classification'
    assert json.loads(props['classes']) == ['a', 'b', 'c']
    assert json.loads(props['preprocess']) == [
        dict(op='resize_short_edge', size=40, interpolation='bilinear'),
        dict(op='center_crop', size=[32, 32]),
    ]


def test_normalisation_outside_is_the_last_step(export):
    status, _, err = export('--out', 'x.onnx', '--no-normalisation')
    assert status == 0, err
    props = {p.key: p.value for p in onnx.load('x.onnx').metadata_props}
    assert json.loads(props['preprocess'])[2:] == [
        dict(op='normalise', mean=[90, 110, 130], std=[50, 60, 70], bgr=False)
    ]


def test_names_of_a_checkpoint_come_first(export, tmp_path):
    from mmengine.config import Config

    from anchorformer_mm.apis import build_model

    model = build_model(Config.fromfile(tmp_path / 'x.py'))
    meta = dict(dataset_meta=dict(classes=('p', 'q', 'r')))
    checkpoint = tmp_path / 'x.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=meta), checkpoint)
    status, out, err = export('x.pth', '--out', 'x.onnx', '--dynamic')
    assert status == 0, err
    assert 'input images: float (batch, 3, height, width)' in out
    props = {p.key: p.value for p in onnx.load('x.onnx').metadata_props}
    assert json.loads(props['classes']) == ['p', 'q', 'r']


def test_nothing_stays_of_a_file_that_is_wrong(export, monkeypatch, tmp_path):
    monkeypatch.setattr(exporting, 'TOLERANCE', -1.0)
    status, out, err = export('--out', 'x.onnx')
    assert status == 2
    assert 'computes something else than the model' in err
    assert out == ''
    assert [path.name for path in tmp_path.iterdir()] == ['x.py']


KEEP_RATIO = [
    'test_dataloader.dataset.pipeline.1.keep_ratio=True',
    'test_dataloader.dataset.pipeline.1.type=Resize',
    'test_dataloader.dataset.pipeline.2.type=LoadAnnotations',
]


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--out', 'x.pt'], '--out must be a file *.onnx, got x.pt'),
        (['--shape', '0', '8'], '--shape must be'),
        (['--batch-size', '0'], '--batch-size must be'),
        (['--dynamic', '--batch-size', '2'], 'no meaning with --dynamic'),
        (['none.pth'], 'checkpoint not found: none.pth'),
        (['--with-nms'], 'with_nms is for detectors only'),
        (['--raw'], 'raw is for detectors only'),
        (['--raw', '--with-nms'], 'not allowed with argument --raw'),
        (['--images', 'none.jpg'], 'image not found: none.jpg'),
        (['--cfg-options', 'model.head.num_classes=4'], 'model has 4 classes'),
        (['--cfg-options', *KEEP_RATIO], 'choose one with --shape H W'),
    ],
)
def test_bad_input_is_one_error(args, message, export, tmp_path):
    out = [] if '--out' in args else ['--out', 'x.onnx']
    status, out, err = export(*args, *out)
    assert status == 2
    assert out == ''
    assert message in err
    assert err.count('error: ') == 1
    assert not list(tmp_path.glob('*x.onnx'))
