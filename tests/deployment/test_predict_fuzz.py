"""predict_onnx.py with image files drawn at random, whole and damaged.

Of every file it must make a picture and an entry of predictions.json, or
name it in one line and leave no picture behind.
"""

import io
import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, save
from PIL import Image

TOOL = Path(__file__).parents[2] / 'tools' / 'deployment' / 'predict_onnx.py'
# Modes that Pillow can write to each format.
FORMATS = dict(
    PNG=('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'),
    JPEG=('L', 'RGB', 'CMYK'),
    TIFF=('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16', 'I', 'F', 'CMYK'),
    BMP=('1', 'L', 'P', 'RGB'),
    GIF=('L', 'P', 'RGB'),
    WEBP=('RGB', 'RGBA'),
    EPS=('L', 'RGB', 'CMYK'),
)
DEEP = {'I;16': np.uint16, 'I': np.int32, 'F': np.float32}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """With a segmentor of three classes whose logits are the pixels."""
    folder = tmp_path_factory.mktemp('fuzz')
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 3, 'h', 'w'))
        for n in ('images', 'logits')
    ]
    node = helper.make_node('Identity', ['images'], ['logits'])
    graph = helper.make_graph([node], 'segmentor', ports[:1], ports[1:])
    opsets = [helper.make_opsetid('', 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    pad = dict(op='pad', size=None, divisor=32, value=[1.5, 2.5, 3.5])
    lists = dict(classes=['red', 'green', 'blue'], preprocess=[pad])
    properties = {key: json.dumps(value) for key, value in lists.items()}
    helper.set_model_props(model, dict(task='segmentation', **properties))
    save(model, folder / 'model.onnx')
    return folder


def encoded(size, form, mode, orientation, rng):
    """An image file of random pixels."""
    if mode in DEEP:
        values = rng.integers(0, 65_536, size[::-1]).astype(DEEP[mode])
        image = Image.fromarray(values)
    else:
        values = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
        image = Image.fromarray(values).convert(mode)
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x112] = orientation
    image.save(content, form, **({} if form == 'EPS' else dict(exif=exif)))
    return bytearray(content.getvalue())


def damage(content, how, share, rng):
    at = int(share * len(content))
    if how == 'cut':
        del content[at:]
    elif how == 'noise':
        content[at:] = rng.bytes(len(content) - at)
    else:
        content[at % 64 % len(content)] ^= 1 << int(rng.integers(8))


# Pillow's, of damage: what counts is what comes of it.
@pytest.mark.filterwarnings('ignore')
@settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    size=st.tuples(*[st.integers(1, 90)] * 2) | st.just((1, 3_000)),
    kind=st.sampled_from([(f, m) for f, ms in FORMATS.items() for m in ms]),
    orientation=st.integers(0, 9),
    how=st.sampled_from(['', '', 'cut', 'noise', 'header']),
    share=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**16),
)
def test_an_image_is_predicted_or_named_in_one_line(
    size, kind, orientation, how, share, seed, folder, monkeypatch, capsys
):
    rng = np.random.default_rng(seed)
    content = encoded(size, *kind, orientation, rng)
    if how:
        damage(content, how, share, rng)
    path, out = folder / 'image.png', folder / 'out'
    path.write_bytes(content)
    shutil.rmtree(out, ignore_errors=True)
    args = [TOOL, folder / 'model.onnx', path, '--out', out, '--threads', 1]
    monkeypatch.setattr('sys.argv', [*map(str, args)])
    used = True
    try:
        runpy.run_path(str(TOOL), run_name='__main__')
    except SystemExit:
        used = False
    images = json.loads((out / 'predictions.json').read_text())['images']
    pictures = {p.name for p in out.iterdir()} - {'predictions.json'}
    assert pictures == {e[k] for e in images for k in ('picture', 'label_map')}
    assert len(images) == used
    if not used:
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith('error: ') and str(path) in line
    refused = kind[0] == 'EPS' or kind[1] == 'F'
    assert not used if refused and not how else used or how
