"""The end of a run of a classifier; detectors: see test_train_and_test.py."""

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


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of two epochs, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ('cat', 'dog'):
        path = tmp_path / 'images' / name / 'a.png'
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), np.full((20, 20, 3), len(name), np.uint8))
    folder = tmp_path / 'run'
    logs = folder / '20260101_000000' / 'vis_data'
    logs.mkdir(parents=True)
    (folder / 'config.py').write_text(CONFIG)
    (logs.parent / 'run.log').touch()
    records = [
        dict(loss=2.0, step=10),
        {'accuracy/top1': 40.0, 'step': 1},
        dict(loss=1.0, step=20),
        {'accuracy/top1': 62.5, 'step': 2},
    ]
    lines = [json.dumps(record) for record in records]
    (logs / 'scalars.json').write_text('\n'.join(lines))
    init_default_scope('mmpretrain')
    model = MODELS.build(Config.fromfile(folder / 'config.py').model)
    torch.save(
        dict(state_dict=model.state_dict(), meta={}), folder / 'epoch_2.pth'
    )
    (folder / 'last_checkpoint').write_text('/moved/run/epoch_2.pth')
    DefaultScope._instance_dict.clear()
    return folder


def summarize(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), 'run'])
    runpy.run_path(str(TOOL), run_name='__main__')
    return capsys.readouterr().out.splitlines()


@pytest.mark.smoke
def test_the_run_of_a_classifier_is_pictured(run, monkeypatch, capsys):
    assert summarize(monkeypatch, capsys)[-5:] == [
        'accuracy/top1: 62.500 after 20 iterations',
        'run/epoch_2.pth',
        'run/20260101_000000/run.log',
        'run/curve.png',
        'run/predictions.png',
    ]
    assert cv2.imread('run/curve.png').std() > 10
    # Two images beside each other.
    assert cv2.imread('run/predictions.png').shape[1] == 8 + 2 * (128 + 8)


def test_runs_of_other_models_are_refused(run, monkeypatch, capsys):
    text = CONFIG.replace("scope = 'mmpretrain'", "scope = 'mmpose'")
    (run / 'config.py').write_text(text)
    with pytest.raises(SystemExit):
        summarize(monkeypatch, capsys)
    assert capsys.readouterr().err == (
        'error: predictions are drawn for detectors and classifiers; '
        'run/config.py is of mmpose\n'
    )
