"""A network that tells colours, in float and in eight bits."""

from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser, save
from PIL import Image

TOOL = Path(__file__).parents[2] / 'tools' / 'deployment' / 'quantize_onnx.py'
STEPS = '[{"op": "resize", "size": [16, 16]}]'


@pytest.fixture
def folder(tmp_path):
    """A model whose scores are the means of the channels, and images."""
    weight = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1) / 255
    model = parser.parse_model(
        """<ir_version: 9, opset_import: ["": 17]>
        graph (float[1,3,16,16] images) => (float[1,3] scores) {
            conv = Conv(images, w)
            mean = GlobalAveragePool(conv)
            scores = Flatten(mean)
        }"""
    )
    for node in model.graph.node:
        node.name = node.output[0]
    model.graph.initializer.append(numpy_helper.from_array(weight, 'w'))
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
    # The first of five is held out.
    assert 'calibrating with 3 images, 1 others are held out' in errors
    assert '0.0% of the images have another class' in out
    assert '1 of 1 layers in INT8' in out
    wanted = np.array([200.0, 100, 30]) / 255
    got = scores(folder / 'int8.onnx', wanted * 255)
    assert 0 < np.abs(got - wanted).max() < 0.01
    # The brightest pixel of the images is as far as its scale goes.
    beyond = scores(folder / 'int8.onnx', (400, 100, 30))
    assert beyond[0] == pytest.approx(250 / 255, abs=0.01)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(model='no.onnx'), 'model not found: no.onnx'),
        ({'--images': 'no.png'}, 'image not found: no.png'),
        (
            {'--out': 'float.onnx'},
            '--out would overwrite the model float.onnx',
        ),
        ({'--count': '0'}, '--count must be 1 or more, got 0'),
        ({'--max-loss': '2'}, '--max-loss must be from 0 to 1, got 2.0'),
        (
            {'--tolerance': '-1'},
            '--tolerance must be 0 or more, got -1.0',
        ),
        (
            {'--images': 'images/0.png'},
            '--images must be 2 or more: one is held out',
        ),
        (
            {'--exclude': 'head'},
            "exclude: 'head' fits no layer that would be quantised; these are "
            'conv',
        ),
    ],
)
def test_bad_command_lines_end_in_one_message(folder, run, change, message):
    before = (folder / 'float.onnx').read_bytes()
    options = {'--images': 'images', '--out': 'a.onnx'} | change
    model = options.pop('model', 'float.onnx')
    status, _, errors = run(model, *(w for o in options.items() for w in o))
    assert status == 2, errors
    assert errors[-1] == f'error: {message}'
    assert not (folder / 'a.onnx').exists()
    assert (folder / 'float.onnx').read_bytes() == before


def test_what_lost_too_much_is_not_kept(folder, run):
    """Calibrated in the dark, all bright colours are one."""
    for i in range(5):
        level = (250, 200, 150) if i == 0 else (3, 2, 1)
        image = Image.new('RGB', (20, 20), level[::-1])
        image.save(folder / 'images' / f'{i}.png')
    args = ('float.onnx', '--images', 'images', '--out', 'int8.onnx')
    status, out, errors = run(*args)
    assert status == 2
    assert '100.0% of the images have another class' in out
    assert errors[-1].startswith('error: int8.onnx is not written: a loss of')
    assert not (folder / 'int8.onnx').exists()
    status, _, errors = run(*args, '--max-loss', '1')
    assert status == 0, errors
    assert (folder / 'int8.onnx').is_file()
