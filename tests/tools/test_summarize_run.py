"""The end of a run of a classifier or a segmentor.

Of a detector: see test_train_and_test.py.
"""

import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from anchorformer_mm.datasets import DigitsSpec, write_digits

TOOL = Path(__file__).parents[2] / 'tools/analysis_tools/summarize_run.py'
CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='anchorformer_mm.AnchorFormer',
        arch=dict(embed_dims=8, num_layers=1, num_heads=2,
                  feedforward_channels=8),
        img_size=16, patch_size=8),
    head=dict(type='VisionTransformerClsHead', num_classes=2, in_channels=8))
data_preprocessor = dict(mean=[128.] * 3, std=[64.] * 3, to_rgb=True)
test_dataloader = dict(dataset=dict(
    type='CustomDataset', data_root='images',
    pipeline=[dict(type='LoadImageFromFile'),
              dict(type='Resize', scale=(16, 16)), dict(type='PackInputs')]))
"""


SEGMENTOR = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', bgr_to_rgb=True,
                           mean=[128.] * 3, std=[64.] * 3),
    backbone=dict(
        type='anchorformer_mm.AnchorFormer',
        arch=dict(embed_dims=8, num_layers=1, num_heads=2,
                  feedforward_channels=8),
        img_size=16, patch_size=8, out_type='featmap'),
    decode_head=dict(type='FCNHead', in_channels=8, channels=8, num_convs=0,
                     concat_input=False, num_classes=11),
    test_cfg=dict(mode='whole'))
test_dataloader = dict(dataset=dict(
    type='BaseSegDataset', data_root='digits',
    data_prefix=dict(img_path='val', seg_map_path='semantic/val'),
    metainfo=dict(classes=[str(i) for i in range(11)]),
    pipeline=[dict(type='LoadImageFromFile'),
              dict(type='Resize', scale=(48, 48), keep_ratio=True),
              dict(type='LoadAnnotations'), dict(type='PackSegInputs')]))
"""


def write_run(folder, text, records, checkpoint):
    """A run that ended, of a model that learned nothing."""
    logs = folder / '20260101_000000' / 'vis_data'
    logs.mkdir(parents=True)
    (folder / 'config.py').write_text(text)
    (logs.parent / 'run.log').touch()
    lines = [json.dumps(record) for record in records]
    (logs / 'scalars.json').write_text('\n'.join(lines))
    cfg = Config.fromfile(folder / 'config.py')
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    torch.save(
        dict(state_dict=model.state_dict(), meta={}), folder / checkpoint
    )
    (folder / 'last_checkpoint').write_text(f'/moved/run/{checkpoint}')
    DefaultScope._instance_dict.clear()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of two epochs, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ('cat', 'dog'):
        path = tmp_path / 'images' / name / 'a.png'
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), np.full((20, 20, 3), len(name), np.uint8))
    records = [
        dict(loss=2.0, step=10),
        {'accuracy/top1': 40.0, 'step': 1},
        dict(loss=1.0, step=20),
        {'accuracy/top1': 62.5, 'step': 2},
    ]
    write_run(tmp_path / 'run', CONFIG, records, 'epoch_2.pth')
    return tmp_path / 'run'


def summarize(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), 'run'])
    runpy.run_path(str(TOOL), run_name='__main__')
    return capsys.readouterr().out.splitlines()


@pytest.mark.smoke
def test_the_run_of_a_classifier_is_pictured(run, monkeypatch, capsys):
    assert summarize(monkeypatch, capsys)[-5:] == [
        'accuracy/top1: 62.50% after 20 iterations',
        'run/epoch_2.pth',
        'run/20260101_000000/run.log',
        'run/curve.png',
        'run/predictions.png',
    ]
    assert cv2.imread('run/curve.png').std() > 10
    # Two images beside each other.
    assert cv2.imread('run/predictions.png').shape[1] == 8 + 2 * (128 + 8)


@pytest.mark.smoke
def test_the_run_of_a_segmentor_is_pictured(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    spec = DigitsSpec(num_train=1, num_val=3, scene_size=(96, 64))
    write_digits('digits', spec)
    # As mmseg logs: iterations, and percentages.
    records = [
        {'loss': 2.0, 'decode.loss_ce': 2.0, 'step': 50},
        dict(aAcc=80.0, mIoU=5.25, mAcc=9.0, step=60),
        {'loss': 1.0, 'decode.loss_ce': 1.0, 'step': 100},
        dict(aAcc=90.0, mIoU=0.75, mAcc=9.0, step=120),
    ]
    write_run(tmp_path / 'run', SEGMENTOR, records, 'iter_120.pth')
    assert summarize(monkeypatch, capsys)[-5:] == [
        'mIoU: 0.75% after 120 iterations',
        'run/iter_120.pth',
        'run/20260101_000000/run.log',
        'run/curve.png',
        'run/predictions.png',
    ]
    assert cv2.imread('run/curve.png').std() > 10
    # Three scenes, two beside each other, each with its two maps.
    height, width = cv2.imread('run/predictions.png').shape[:2]
    assert width == 8 + 6 * (192 + 8)
    assert height >= 8 + 2 * (16 + 128 + 8) + 16


def test_runs_of_other_models_are_refused(run, monkeypatch, capsys):
    text = CONFIG.replace("scope = 'mmpretrain'", "scope = 'mmpose'")
    (run / 'config.py').write_text(text)
    with pytest.raises(SystemExit):
        summarize(monkeypatch, capsys)
    assert capsys.readouterr().err == (
        'error: predictions are drawn for detectors, classifiers and '
        'segmentors; run/config.py is of mmpose\n'
    )
