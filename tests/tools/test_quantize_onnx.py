"""A network that tells colours, in float and in eight bits."""

from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from PIL import Image

TOOL = Path(__file__).parents[2] / 'tools' / 'deployment' / 'quantize_onnx.py'
STEPS = '[{"op": "resize", "size": [16, 16]}]'


@pytest.fixture
def folder(tmp_path):
    """A model whose scores are the means of the channels, and images."""
    weight = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1) / 255
    graph = helper.make_graph(
        [
            helper.make_node('Conv', ['images', 'w'], ['c'], 'conv'),
            helper.make_node('GlobalAveragePool', ['c'], ['mean'], 'pool'),
            helper.make_node('Flatten', ['mean'], ['scores'], 'flatten'),
        ],
        'graph',
        [
            helper.make_tensor_value_info(
                'images', TensorProto.FLOAT, (1, 3, 16, 16)
            )
        ],
        [helper.make_tensor_value_info('scores', TensorProto.FLOAT, (1, 3))],
        [numpy_helper.from_array(weight, 'w')],
    )
    opsets = [helper.make_opsetid('', 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    properties = dict(
        task='classification', classes='["r", "g", "b"]', preprocess=STEPS
    )
    helper.set_model_props(model, properties)
    save(model, tmp_path / 'float.onnx')
    (tmp_path / 'images').mkdir()
    for i in range(5):
        # Of five images, every second one is bright.
        level = 250 if i % 2 == 0 else 50
        image = Image.new('RGB', (20 + i, 30), (level, level // 2, 10 * i))
        image.save(tmp_path / 'images' / f'{i}.png')
    return tmp_path


@pytest.fixture
def run(folder, run_tool, monkeypatch):
    """Run the tool in the folder; gives status, output, lines of errors."""
    monkeypatch.chdir(folder)
    # As for any script, its own folder.
    monkeypatch.syspath_prepend(TOOL.parent)
    return partial(run_tool, TOOL)


def scores(path, colour):
    providers = ['CPUExecutionProvider']
    session = onnxruntime.InferenceSession(str(path), providers=providers)
    batch = np.empty((1, 3, 16, 16), np.float32)
    batch[:] = np.reshape(colour, (3, 1, 1))
    return session.run(None, {'images': batch})[0][0]


def test_a_model_is_calibrated_with_the_images_of_a_folder(folder, run):
    args = ('float.onnx', '--images', 'images', '--out', 'int8.onnx')
    status, out, errors = run(*args, '--count', '3')
    assert status == 0, errors
    assert 'calibrating with 3 images' in errors
    assert 'int8.onnx: 1 nodes in INT8, ' in out
    wanted = np.array([200.0, 100, 30]) / 255
    got = scores(folder / 'int8.onnx', wanted * 255)
    assert 0 < np.abs(got - wanted).max() < 0.01
    # The brightest pixel of the images is as far as its scale goes.
    beyond = scores(folder / 'int8.onnx', (400, 100, 30))
    assert beyond[0] == pytest.approx(250 / 255, abs=0.01)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (
            ('no.onnx', '--images', 'images', '--out', 'a.onnx'),
            'model not found: no.onnx',
        ),
        (
            ('float.onnx', '--images', 'no.png', '--out', 'a.onnx'),
            'image not found: no.png',
        ),
        (
            ('float.onnx', '--images', 'images', '--out', 'float.onnx'),
            '--out would overwrite the model float.onnx',
        ),
        (
            ('float.onnx', '--images', 'images', '--out', 'a.onnx')
            + ('--count', '0'),
            '--count must be 1 or more, got 0',
        ),
        (
            ('float.onnx', '--images', 'images', '--out', 'a.onnx')
            + ('--exclude', 'head'),
            "exclude: 'head' fits no node that would be quantised; these are "
            'conv',
        ),
    ],
)
def test_bad_command_lines_end_in_one_message(folder, run, args, message):
    before = (folder / 'float.onnx').read_bytes()
    status, _, errors = run(*args)
    assert status == 2, errors
    assert errors[-1] == f'error: {message}'
    assert not (folder / 'a.onnx').exists()
    assert (folder / 'float.onnx').read_bytes() == before
