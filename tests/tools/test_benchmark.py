"""The command line; what is measured: see analysis/test_benchmark.py."""

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from anchorformer_mm.analysis import benchmark as library

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(type='ClsDataPreprocessor'),
    backbone=dict(
        type='anchorformer_mm.AnchorFormer',
        arch=dict(embed_dims=16, num_layers=1, num_heads=2,
                  feedforward_channels=16),
        img_size=32, patch_size=2, attention={!r}),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=16))
"""


@pytest.fixture
def benchmark(run_tool, tmp_path, monkeypatch):
    """Run the tool beside the configs; gives status, lines, errors."""
    for name in ('vanilla', 'learned'):
        (tmp_path / f'{name}.py').write_text(CONFIG.format(name))
    monkeypatch.chdir(tmp_path)

    return partial(run_tool, 'analysis_tools/benchmark.py')


@pytest.fixture
def quick(monkeypatch):
    """Memory without the processes, which take seconds to start."""
    monkeypatch.setattr(library, 'cpu_memory', lambda start, threads: 2**20)


def rows_of(out):
    header, _, *rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in out.split('\n\n')[0].splitlines()
    ]
    return [dict(zip(header[:9], row, strict=False)) for row in rows]


def test_backbones_are_compared(benchmark, tmp_path):
    status, out, errors = benchmark(
        *('vanilla.py', 'learned.py', '--shapes', '64x128', '--threads', '1'),
        *('--part', 'backbone', '--runs', '2', '--out', 'new/table.md'),
        # Other processes would import all of mmpretrain.
        *('--cfg-options', 'default_scope=mmengine'),
        'model.backbone.num_anchors=4',
    )
    assert status == 0
    assert (tmp_path / 'new' / 'table.md').read_text() == out
    rows = rows_of(out)
    assert [(r['config'], r['attention'], r['network']) for r in rows] == [
        ('vanilla', 'auto', 'backbone'),
        ('vanilla', 'math', 'backbone'),
        ('learned', 'auto', 'backbone'),
    ]
    fused, plain, learned = (float(row['memory (MiB)']) for row in rows)
    # Two heads of 2,049 x 2,049 numbers are 32 MiB.
    assert plain > 32 > fused
    assert plain > 32 > learned
    assert 'that of 2 passes' in out
    assert 'images at a time: 1' in out
    assert errors[-1].startswith('64 x 128, threads: 1: pass 2 of 2, about')


def test_onnx_files_are_compared_as_they_are(benchmark, quick, tmp_path):
    pytest.importorskip('onnxruntime')
    for name, network in (('a', nn.ReLU()), ('b', nn.Conv2d(3, 2, 3))):
        torch.onnx.export(
            network,
            (torch.rand(1, 3, 16, 24),),
            f'{name}.onnx',
            dynamo=False,
        )
    command = ('--shapes', '16x24', '--runtimes', 'onnx', '--threads', '1')
    status, out, _ = benchmark('a.onnx', 'b.onnx', *command, '--runs', '2')
    assert status == 0
    assert [next(iter(row.values())) for row in rows_of(out)] == ['a', 'b']

    command = ('--shapes', '16x16', '--runtimes', 'onnx')
    status, _, err = benchmark('a.onnx', *command)
    assert status == 2
    assert 'is for images [1, 3, 16, 24], not [1, 3, 16, 16]' in err[-1]


def test_models_are_compared_in_onnx_runtime(benchmark, quick, tmp_path):
    pytest.importorskip('onnxruntime')
    cv2.imwrite('noise.png', np.zeros((4, 4, 3), np.uint8))
    status, out, _ = benchmark(
        *('learned.py', '--shapes', '32x32', '48x32', '--threads', '1', '2'),
        *('--runtimes', 'eager', 'onnx', '--runs', '3', '--warm-up', '1'),
        *('--json', 'new/all.json', '--image', 'noise.png'),
    )
    assert status == 0
    conditions = [
        (size, threads, runtime)
        for size in ('32 x 32', '48 x 32')
        for threads in '12'
        for runtime in ('eager', 'onnx')
    ]
    rows = rows_of(out)
    assert [
        (r['size'], r['threads'], r['runtime']) for r in rows
    ] == conditions
    assert {r['network'] for r in rows} == {'classification'}
    assert 'on noise.png.' in out
    figures = json.loads(Path('new/all.json').read_text())
    assert len(figures['results']) == 8
    assert all(len(r['seconds']) == 3 for r in figures['results'])
    assert figures['command'].split()[1] == 'learned.py'
    assert {'torch', 'onnxruntime'} <= set(figures['versions'])
    assert figures['results'][-1]['conditions']['threads'] == 2


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('no.py --shapes 8x8', 'config not found: no.py'),
        ('mmdet::no.py --shapes 8x8', 'mmdet has no config no.py in '),
        (
            'vanilla.py --shapes 512',
            '--shapes must be a height and a width each, such as 512x2048; '
            'got 512',
        ),
        ('vanilla.py --shapes 8x0', 'shape must be >= 1, got (8, 0)'),
        (
            'vanilla.py learned.py ./vanilla.py --shapes 8x8',
            'several configs are named vanilla',
        ),
        ('vanilla.py --shapes 8x8 --out .', '--out must be a file, got'),
        ('vanilla.py --shapes 8x8 --json .', '--json must be a file, got'),
        ('vanilla.py --shapes 8x8 --runs 0', 'runs must be >= 1, got 0'),
        ('vanilla.py --shapes 8x8 --warm-up 0', 'warm_up must be >= 1, got 0'),
        ('vanilla.py --shapes 8x8 --threads 0', 'threads must be >= 1, got 0'),
        ('vanilla.py --shapes 8x8 --device sofa', "device 'sofa': "),
        ('vanilla.py --shapes 8x8 --image no.png', 'image not found: no.png'),
        (
            'vanilla.py --shapes 8x8 --with-nms',
            '--with-nms needs --runtimes onnx alone and --part model',
        ),
        (
            'vanilla.py --shapes 8x8 --part backbone --runtimes onnx',
            '--runtimes onnx needs --part model',
        ),
        (
            'vanilla.py learned.py --shapes 8x8 --checkpoints a.pth',
            '--checkpoints must be one file for each of the 2 configs, got 1',
        ),
        (
            'vanilla.py --shapes 8x8 --cfg-options model.backbone.arch=huge',
            'the model cannot be built: ',
        ),
    ],
)
def test_bad_input_ends_in_one_message(benchmark, tmp_path, args, message):
    before = sorted(tmp_path.iterdir())
    status, out, errors = benchmark(*args.split())
    assert status == 2
    assert errors[-1].startswith(f'error: {message}')
    assert out == ''
    assert sorted(tmp_path.iterdir()) == before
