"""The command line; what is measured: see analysis/test_step_cost.py."""

import json
from functools import partial

import pytest

from anchorformer_mm.analysis import step_setup

CONFIG = """
default_scope = 'mmdet'
model = dict(
    type='anchorformer_mm.PicoDet',
    data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
    backbone=dict(type='anchorformer_mm.ESNet', arch='0.75x'),
    neck=dict(type='anchorformer_mm.CSPPAN', in_channels=(96, 192, 384),
              out_channels=8),
    bbox_head=dict(type='anchorformer_mm.PicoHead', num_classes=80,
                   in_channels=8, feat_channels=8))
train_dataloader = dict(
    batch_size=80, num_workers=8, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True), drop_last=True,
    batch_sampler=None,
    dataset=dict(
        type='CocoDataset', data_root='data/coco/', ann_file='train.json',
        data_prefix=dict(img='train/'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=(416, 416)),
            dict(type='PackDetInputs')]))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.001))
"""


@pytest.fixture
def step_cost(run_tool, tmp_path, monkeypatch):
    """Run the tool beside the config; gives status, output, errors."""
    (tmp_path / 'config.py').write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        step_setup,
        'write_synthetic_coco',
        partial(step_setup.write_synthetic_coco, num_images=5, shape=(60, 80)),
    )

    return partial(run_tool, 'analysis_tools/step_cost.py')


@pytest.mark.parametrize('num_workers', [0, 1])
def test_a_step_is_divided(step_cost, tmp_path, num_workers):
    args = (
        'config.py --synthetic --size 64 --batch-size 2 --steps 2 '
        f'--warm-up 1 --threads 1 --num-workers {num_workers} '
        '--out new/cost.json'
    )
    status, out, errors = step_cost(*args.split())
    assert status == 0, errors
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in out.split('\n\n')[0].splitlines()
    ]
    parts = {row[0]: float(row[1]) for row in rows[2:]}
    assert len(parts) == 9
    assert 'threads: 1; torch ' in out
    assert 'Medians of 2 steps, after 1 that are not timed.' in out
    assert f'The loader alone, {num_workers} workers: ' in out
    assert errors[-1].startswith('step 2 of 2: loss ')

    figures = json.loads((tmp_path / 'new' / 'cost.json').read_text())
    assert figures['config'] == 'config.py'
    assert figures['loader_seconds'] > 0
    for part, figure in figures['parts'].items():
        assert 1e3 * figure['median'] == pytest.approx(parts[part], abs=0.06)
        assert len(figure['all']) == 2
        assert figure['median'] > 0
    shares = [figure['share'] for figure in figures['parts'].values()]
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('no.py', 'config not found: no.py'),
        ('config.py', 'the data set of this config is not complete.'),
        ('config.py --out .', '--out must be a file, got the folder .'),
        ('config.py --num-workers -1', 'num_workers must be >= 0, got -1'),
        ('config.py --size 0', 'shape must be >= 1, got (0, 0)'),
        ('config.py --batch-size 0', 'batch_size must be >= 1, got 0'),
        ('config.py --threads 0', 'threads must be >= 1, got 0'),
        ('config.py --steps 0', 'steps must be >= 1, got 0'),
        ('config.py --warm-up -1', 'warm_up must be >= 0, got -1'),
        ('config.py --device sofa', "device 'sofa': "),
        (
            'config.py --cfg-options optim_wrapper=None',
            'config.py has no optim_wrapper',
        ),
        (
            'config.py --synthetic --cfg-options '
            'train_dataloader.dataset.type=VOCDataset',
            '--synthetic needs training data in the format of COCO',
        ),
    ],
)
def test_bad_input_ends_in_one_message(step_cost, tmp_path, args, message):
    before = sorted(tmp_path.iterdir())
    status, out, errors = step_cost(*args.split())
    assert status == 2
    assert any(line.startswith(f'error: {message}') for line in errors)
    assert out == ''
    assert sorted(tmp_path.iterdir()) == before
