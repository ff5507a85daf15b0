"""Metadata and outputs of ONNX files that lie, images of any format."""

import json
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from anchorformer_mm.deployment.onnx_model import open_session
from anchorformer_mm.utils.errors import UsageError

RESIZE, PAD = dict(op='resize'), dict(op='pad')


@pytest.mark.parametrize(
    ('step', 'words'),
    [
        (RESIZE | dict(size=None), '(resize): size must be [height, width],'),
        (RESIZE | dict(size=['a', 'b']), "got ['a', 'b']"),
        (RESIZE | dict(size=[0, 0]), 'from 1 to 16384, got [0, 0]'),
        (RESIZE | dict(size=[float('nan')] * 2), 'got [nan, nan]'),
        (RESIZE | dict(size=[10**6] * 2), 'got [1000000, 1000000]'),
        (RESIZE | dict(size=[4, 4, 4]), 'got [4, 4, 4]'),
        (RESIZE | dict(size=[4, True]), 'got [4, True]'),
        (RESIZE | dict(size=[4, 4], keep_ratio=2), 'keep_ratio must be true'),
        (RESIZE | dict(size=[4, 4], interpolation=['x']), "got ['x']"),
        (dict(op='resize_short_edge', size=[4]), 'size must be a whole numb'),
        (dict(op='center_crop', size=3), '(center_crop): size must be [hei'),
        (PAD | dict(divisor='x'), 'divisor must be a whole number from 1 to'),
        (PAD | dict(divisor=-7), 'got -7'),
        (PAD | dict(value=[1, 2]), 'value must be [red, green, blue], numb'),
        (PAD | dict(value=[1, 2, float('inf')]), 'got [1, 2, inf]'),
        (PAD | dict(size=0), ', or null, got 0'),
        (dict(op='grey', p=1), "preprocess[0] (grey) has 'p', it takes noth"),
        (dict(op=['grey']), 'preprocess[0] must be an object with an "op"'),
        (7, 'preprocess[0] must be an object with an "op"'),
    ],
)
def test_steps_that_cannot_be_are_named(small_onnx, refusal, step, words):
    model = small_onnx(preprocess=json.dumps([step]))
    assert words in refusal(model.SerializeToString())


@pytest.mark.parametrize(
    ('metadata', 'words'),
    [
        (dict(preprocess='{"op": "grey"}'), 'preprocess must be a JSON list,'),
        (dict(preprocess='[' * 100_000), 'preprocess must be a JSON list, go'),
        (dict(preprocess='null'), "preprocess must be a JSON list, got 'nul"),
        (dict(classes='7'), "classes must be a JSON list, got '7'"),
        (dict(classes='"abc"'), 'classes must be a JSON list, got'),
        (dict(classes='["a", 2]'), 'classes[1] must be a name of at most 1'),
        (dict(classes=json.dumps(['a' * 9999])), 'classes[0] must be a name'),
    ],
)
def test_metadata_that_cannot_be_are_named(
    small_onnx, refusal, metadata, words
):
    error = refusal(small_onnx(**metadata).SerializeToString())
    assert words in error and len(error) < 600


def test_texts_that_are_none_are_one_line(tmp_path, small_onnx, refusal):
    content = small_onnx(classes='["aaaa"]').SerializeToString()
    content = content.replace(b'aaaa', b'a\xf3aa')
    assert "is no usable ONNX file: 'utf-8' codec" in refusal(content)
    with pytest.raises(UsageError, match="ONNX file: 'utf-8' codec can't"):
        open_session(tmp_path / 'm.onnx')


F32, NAN = np.float32, np.float32('nan')
BOX = dict(boxes=np.zeros((1, 4), F32), scores=F32([1]), labels=np.int64([0]))


@pytest.fixture
def giving(small_onnx):
    """Gives a model with these outputs, whatever it sees."""

    def make(task, arrays, **metadata):
        tensors = [
            numpy_helper.from_array(a, f'{n}_') for n, a in arrays.items()
        ]
        nodes = [helper.make_node('Identity', [f'{n}_'], [n]) for n in arrays]
        return small_onnx(nodes, tensors, task=task, **metadata)

    return make


@pytest.mark.parametrize(
    ('task', 'arrays', 'words'),
    [
        (
            'classification',
            dict(scores=F32(3)),
            'must be finite numbers of the shape (1, C), got float32 ()',
        ),
        ('classification', dict(scores=F32([[]])), 'got float32 (1, 0)'),
        ('classification', dict(scores=F32([[1, NAN]])), 'output scores of'),
        (
            'segmentation',
            dict(logits=np.zeros((1, 2, 3, 3), F32)),
            '(1, C = 2, H = 6, W = 8), got float32 (1, 2, 3, 3)',
        ),
        (
            'segmentation',
            dict(logits=np.full((1, 2, 6, 8), NAN)),
            'must be finite numbers, got nan',
        ),
        (
            'detection',
            BOX | dict(scores=F32([1, 2])),
            'must be finite numbers of the shape (K = 1), got float32 (2,)',
        ),
        (
            'detection',
            BOX | dict(boxes=F32([[0, 1, NAN, 2]])),
            'output boxes of',
        ),
        (
            'detection',
            BOX | dict(labels=np.int64([-1])),
            'must be numbers from 0 on, got -1',
        ),
    ],
)
def test_outputs_that_cannot_be_are_named(
    giving, refusal, task, arrays, words
):
    model = giving(task, arrays)
    assert words in refusal(model.SerializeToString())


def test_what_fails_at_the_start_is_one_line(small_onnx, refusal):
    tensor = numpy_helper.from_array(F32([[1, 2]]), 'a')
    tensor.raw_data = tensor.raw_data[:5]
    nodes = [helper.make_node('Add', ['a', 'a'], ['scores'])]
    model = small_onnx(nodes, [tensor])
    error = refusal(model.SerializeToString())
    assert 'is no usable ONNX file: ' in error


def test_what_fails_while_it_runs_is_one_line(small_onnx, refusal):
    shape = numpy_helper.from_array(np.int64([7, 7]), 'shape')
    nodes = [helper.make_node('Reshape', ['images', 'shape'], ['scores'])]
    model = small_onnx(nodes, [shape])
    assert 'cannot be run: ' in refusal(model.SerializeToString())


def test_names_do_nothing_to_the_terminal(
    predict_onnx, giving, tmp_path, monkeypatch, capsys
):
    names = ['\x1b[2J', 'b\nerror: c', '\ud800', '\u2028', 'größer']
    arrays = dict(scores=F32([[5, 4, 3, 2, 1]]))
    model = giving('classification', arrays, classes=json.dumps(names))
    onnx.save(model, tmp_path / 'm.onnx')
    Image.new('RGB', (8, 6), 'red').save(tmp_path / 'a.png')
    args = ['predict_onnx.py', 'm.onnx', 'a.png', '--out', 'out']
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', args)
    predict_onnx.main()
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 1 and '\x1b' not in shown
    results = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
    wanted = ['?[2J', 'b?error: c', '?', '?', 'größer']
    assert results['classes'] == wanted


@pytest.mark.parametrize('form', ['EPS', 'PPM', 'ICO'])
def test_only_formats_of_photographs_are_opened(
    predict_onnx, small_onnx, tmp_path, monkeypatch, capsys, form
):
    onnx.save(small_onnx(), tmp_path / 'm.onnx')
    path = tmp_path / 'a.png'
    Image.new('RGB', (16, 16), 'red').save(path, form)
    args = [tmp_path / 'm.onnx', path, '--out', tmp_path / 'out']
    monkeypatch.setattr(sys, 'argv', ['predict_onnx.py', *map(str, args)])
    with pytest.raises(SystemExit):
        predict_onnx.main()
    assert capsys.readouterr().err == (
        f'error: cannot read {path}: it is no image of BMP, GIF, JPEG, PNG, '
        'TIFF, WEBP\n'
    )
