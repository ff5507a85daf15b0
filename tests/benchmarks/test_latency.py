import json
from functools import partial

import cv2
import latency
import numpy as np
import pytest
import torch
from common import peak_memory
from torch import nn

MIB = 2**20
CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(type='ClsDataPreprocessor'),
    backbone=dict(
        type='anchorformer_mm.AnchorFormer',
        arch=dict(embed_dims=16, num_layers=1, num_heads=2,
                  feedforward_channels=16),
        img_size=32, patch_size=2, num_anchors=4, attention={!r}),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=16))
"""


@pytest.fixture
def run(run_script, tmp_path):
    for name in ('vanilla', 'learned'):
        (tmp_path / f'{name}.py').write_text(CONFIG.format(name))
    return partial(run_script, 'latency')


def rows_of(out):
    header, _, *rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in out.split('\n\n')[0].splitlines()
    ]
    return [dict(zip(header[:6], row, strict=False)) for row in rows]


@pytest.mark.smoke
def test_memory_of_a_pass_is_what_it_holds_beyond_weights_and_images():
    # Of 768 KiB it makes 48 MiB.
    build = partial(nn.Upsample, scale_factor=8)
    conditions = latency.Conditions((256, 256))
    start = partial(latency.start_torch, build, conditions, 'eager')
    assert peak_memory(start, 'cpu', 1) == pytest.approx(48 * MIB, abs=MIB)


def test_models_run_in_every_runtime(run, quick, tmp_path):
    pytest.importorskip('onnxruntime')
    cv2.imwrite('noise.png', np.zeros((4, 4, 3), np.uint8))
    runtimes = ['eager', 'math', 'onnx']
    status, out, _ = run(
        *('vanilla.py', 'learned.py', '--shapes', '32x32', '--runs', '2'),
        *('--runtimes', *runtimes, '--warm-up', '1', '--threads', '1'),
        *('--json', 'new/all.json', '--image', 'noise.png'),
    )
    assert status == 0
    assert [(r['config'], r['runtime']) for r in rows_of(out)] == [
        (name, r) for name in ('vanilla', 'learned') for r in runtimes
    ]
    # Ratios are to the first row.
    assert out.splitlines()[2].endswith('1.000 |')
    assert 'vanilla (eager)' in out
    assert 'noise.png' in out
    figures = json.loads((tmp_path / 'new/all.json').read_text())
    assert [len(r['seconds']) for r in figures['results']] == 6 * [2]
    assert {r['task'] for r in figures['results']} == {'classification'}
    assert 'onnxruntime' in figures['versions']


@pytest.mark.parametrize(
    'runtime', ['onnx', 'openvino', 'openvino-bf16', 'ncnn']
)
def test_onnx_files_are_compared_as_they_are(runtime, run, quick):
    pytest.importorskip('onnxruntime')
    pytest.importorskip(runtime.split('-')[0])
    if runtime == 'ncnn':
        pytest.importorskip('pnnx')
    for name, network in (('a', nn.ReLU()), ('b', nn.Conv2d(3, 2, 3))):
        images = torch.rand(1, 3, 16, 24)
        torch.onnx.export(network, (images,), f'{name}.onnx', dynamo=False)
    command = ('--runtimes', runtime, '--runs', '1', '--shapes')
    status, out, _ = run('a.onnx', 'b.onnx', *command, '16x24')
    assert status == 0
    assert [row['config'] for row in rows_of(out)] == ['a', 'b']
    status, _, err = run('a.onnx', *command, '16x16')
    assert status == 2
    assert 'is for images [1, 3, 16, 24], not [1, 3, 16, 16]' in err


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('no.py --shapes 8x8', 'no.py'),
        ('vanilla.py --shapes 512', '--shapes'),
        ('vanilla.py ./vanilla.py --shapes 8x8', 'different names'),
        ('vanilla.py --shapes 8x8 --json .', '--json'),
        ('vanilla.py --shapes 8x8 --threads 0', '--threads'),
        ('vanilla.py --shapes 8x8 --device sofa', "'sofa'"),
        ('vanilla.py --shapes 8x8 --with-nms', '--with-nms'),
        ('vanilla.py --shapes 8x8 --checkpoints a b', '--checkpoints'),
        ('no.onnx --shapes 8x8', '--runtimes onnx'),
        ('no.onnx --shapes 8x8 --runtimes onnx', 'no.onnx'),
        ('vanilla.py --shapes 8x8 --runtimes tflite', "'tflite'"),
        (
            'vanilla.py --shapes 8x8 --runtimes ncnn --batch-size 2',
            '--batch-size 1',
        ),
    ],
)
def test_bad_input_ends_in_one_message(run, args, message):
    status, out, err = run(*args.split())
    assert (status, out) == (2, '')
    assert 'error: ' in err.splitlines()[-1]
    assert message in err.splitlines()[-1]
