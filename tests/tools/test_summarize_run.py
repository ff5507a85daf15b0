"""The end of a run: its curve, its predictions and its figure.

Of a detector: see test_train_and_test.py.
"""

import json
import os
import shutil
import time

import cv2
import numpy as np
import pytest
import torch

from anchorformer_mm.apis import build_model, read_config

TOOL = 'analysis_tools/summarize_run.py'
BACKBONE = """dict(
    type='anchorformer_mm.AnchorFormer',
    arch=dict(embed_dims=8, num_layers=1, num_heads=2,
              feedforward_channels=8),
    img_size=16, patch_size=8, {more})"""
CLASSIFIER = f"""
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone={BACKBONE.format(more='')},
    head=dict(type='VisionTransformerClsHead', num_classes=2, in_channels=8))
data_preprocessor = dict(mean=[128.] * 3, std=[64.] * 3, to_rgb=True)
test_dataloader = dict(dataset=dict(
    type='CustomDataset', data_root='images',
    pipeline=[dict(type='LoadImageFromFile'),
              dict(type='Resize', scale=(16, 16)), dict(type='PackInputs')]))
"""
SEGMENTOR = f"""
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', bgr_to_rgb=True,
                           mean=[128.] * 3, std=[64.] * 3),
    backbone={BACKBONE.format(more="out_type='featmap'")},
    decode_head=dict(type='FCNHead', in_channels=8, channels=8, num_convs=0,
                     concat_input=False, num_classes=7),
    test_cfg=dict(mode='whole'))
test_dataloader = dict(dataset=dict(
    type='BaseSegDataset', data_prefix=dict(
        img_path='images/cat', seg_map_path='images/dog'),
    img_suffix='.png', metainfo=dict(
        classes=list('abcdefg'),
        palette=[[9, 99, i] for i in range(196, 203)]),
    pipeline=[dict(type='LoadImageFromFile'),
              dict(type='LoadAnnotations'), dict(type='PackSegInputs')]))
"""
# As the libraries log: of epochs, or of iterations and percentages.
RUNS = dict(
    mmpretrain=(
        CLASSIFIER,
        [dict(loss=2.0, step=20), {'accuracy/top1': 62.5, 'step': 2}],
        'accuracy/top1: 62.50% after 20 iterations',
    ),
    mmseg=(
        SEGMENTOR,
        [dict(loss=2.0, step=100), dict(aAcc=90.0, mIoU=0.75, step=120)],
        'mIoU: 0.75% after 120 iterations',
    ),
)


def write_run(folder, text, records):
    """A run that ended, of a model that learned nothing."""
    logs = folder / '20260101_000000' / 'vis_data'
    logs.mkdir(parents=True)
    (folder / 'config.py').write_text(text)
    (logs.parent / 'run.log').touch()
    lines = [json.dumps(record) for record in records]
    (logs / 'scalars.json').write_text('\n'.join(lines))
    model = build_model(read_config(folder / 'config.py'))
    content = dict(state_dict=model.state_dict(), meta={})
    torch.save(content, folder / 'last.pth')
    (folder / 'other.pth').touch()
    (folder / 'last_checkpoint').write_text('/moved/run/last.pth')


@pytest.fixture(autouse=True)
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('cat', 'dog'):
        path = tmp_path / 'images' / name / 'a.png'
        path.parent.mkdir(parents=True)
        image = np.full((20, 24), 3, np.uint8)
        image[:, :4] = 255
        cv2.imwrite(str(path), image)


@pytest.mark.smoke
@pytest.mark.parametrize('scope', RUNS)
def test_a_run_is_pictured(tmp_path, run_tool, scope):
    text, records, figure = RUNS[scope]
    write_run(tmp_path / 'run', text, records)
    status, printed, _ = run_tool(TOOL, 'run')
    assert status == 0
    assert printed.splitlines()[-7:-2] == [
        figure,
        'run/last.pth',
        'run/20260101_000000/20260101_000000.log',
        'run/curve.png',
        'run/predictions.png',
    ]
    for name in ('curve', 'predictions'):
        assert cv2.imread(f'run/{name}.png').std() > 10


def add_part(folder, name, records, *, resume=False):
    """Another start of a run, with its logs alone."""
    logs = folder / name / 'vis_data'
    logs.mkdir(parents=True)
    lines = [json.dumps(record) for record in records]
    (logs / 'scalars.json').write_text('\n'.join(lines))
    (logs / 'config.py').write_text(f'resume = {resume}')


def test_the_summary_is_of_the_last_training_and_its_best(tmp_path, run_tool):
    text, records, _ = RUNS['mmseg']
    write_run(tmp_path / 'run', text, records)
    for path in (tmp_path / 'run').glob('*.pth'):
        # Of an hour ago, when the first training ended.
        path.rename(path.with_stem(f'old_{path.stem}'))
    for path in (tmp_path / 'run').glob('*.pth'):
        os.utime(path, (time.time() - 3600,) * 2)
    weights = tmp_path / 'run/old_last.pth'
    first = [
        dict(loss=1.0, step=50),
        {'mIoU': 20.0, 'IoU/a b': 33.0, 'IoU/c': 7.0, 'step': 60},
    ]
    second = [dict(loss=0.5, step=150), dict(mIoU=10.0, step=160)]
    add_part(tmp_path / 'run', '20260102_000000', first)
    add_part(tmp_path / 'run', '20260103_000000', second, resume=True)
    for name in ('best_mIoU_iter_60.pth', 'last.pth'):
        shutil.copyfile(weights, tmp_path / 'run' / name)
    status, printed, _ = run_tool(TOOL, 'run')
    assert status == 0
    lines = printed.splitlines()[-9:]
    assert lines[0] == 'mIoU: 20.00% after 60 iterations (the last: 10.00%)'
    assert 'a b 33.00%, c 7.00%' in lines[1]
    assert 'old_last.pth' in lines[2]
    assert 'run/last.pth' not in lines[2]
    assert lines[3] == 'run/best_mIoU_iter_60.pth'
    for line in lines[-2:]:
        assert 'run/config.py run/best_mIoU_iter_60.pth' in line


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda cfg: cfg.update(default_scope='mmpose'), 'mmpose'),
        (
            lambda cfg: cfg.test_dataloader.dataset.pipeline.pop(1),
            'ground truth',
        ),
        (
            lambda cfg: cfg.test_dataloader.dataset.pop('metainfo'),
            'no classes',
        ),
    ],
)
def test_what_cannot_be_pictured_is_told(tmp_path, run_tool, change, message):
    text, records, _ = RUNS['mmseg']
    write_run(tmp_path / 'run', text, records)
    cfg = read_config('run/config.py')
    change(cfg)
    cfg.dump('run/config.py')
    status, _, errors = run_tool(TOOL, 'run')
    assert status == 2
    assert message in errors[-1]
