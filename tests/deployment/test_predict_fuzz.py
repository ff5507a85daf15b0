"""predict_onnx.py with image files drawn at random, whole and damaged.

Of every file it must make a picture and an entry of predictions.json, or
refuse it in one line that names it and leave no picture behind.
"""

import io
import json
import os
import shutil
import sys
import warnings
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, save
from PIL import Image

TOOL = Path(__file__).parents[2] / 'tools' / 'deployment' / 'predict_onnx.py'
DRAWS = int(os.environ.get('IMAGE_DRAWS', '120'))
# Modes that Pillow can write to each format.
FORMATS = dict(
    PNG=('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'),
    JPEG=('L', 'RGB', 'CMYK'),
    TIFF=('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16', 'I', 'F', 'CMYK'),
    BMP=('1', 'L', 'P', 'RGB'),
    GIF=('L', 'P', 'RGB'),
    WEBP=('RGB', 'RGBA'),
    EPS=('L', 'RGB', 'CMYK'),
    PPM=('1', 'L', 'RGB'),
)
# Pillow knows them; to show the first one it starts Ghostscript.
REFUSED = ('EPS', 'PPM')
FIT = [
    dict(op='resize', size=[64, 64], keep_ratio=True, interpolation='area'),
    dict(op='pad', size=[64, 64], divisor=None, value=[0, 0, 0]),
]
OPEN = [dict(op='pad', size=None, divisor=32, value=[1.5, 2.5, 3.5])]


def write_model(path, steps, height, width):
    """A segmentor of three classes whose logits are the pixels."""
    ports = [
        helper.make_tensor_value_info(
            name, TensorProto.FLOAT, (1, 3, height, width)
        )
        for name in ('images', 'logits')
    ]
    node = helper.make_node('Identity', ['images'], ['logits'])
    graph = helper.make_graph([node], 'segmentor', ports[:1], ports[1:])
    opsets = [helper.make_opsetid('', 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    properties = dict(
        task='segmentation',
        classes=json.dumps(['red', 'green', 'blue']),
        preprocess=json.dumps(steps),
    )
    helper.set_model_props(model, properties)
    save(model, path)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('fuzz')
    write_model(folder / 'fit.onnx', FIT, 64, 64)
    write_model(folder / 'open.onnx', OPEN, 'h', 'w')
    return folder


@pytest.fixture(scope='module')
def tool():
    spec = spec_from_file_location('predict_onnx', TOOL)
    tool = module_from_spec(spec)
    sys.modules['predict_onnx'] = tool
    spec.loader.exec_module(tool)
    yield tool
    del sys.modules['predict_onnx']


def encoded(size, form, mode, orientation, rng):
    """An image file of random pixels."""
    if mode in ('I;16', 'I', 'F'):
        kind = {'I;16': np.uint16, 'I': np.int32, 'F': np.float32}[mode]
        values = rng.integers(0, 65_536, size[::-1]).astype(kind)
        image = Image.fromarray(values)
    else:
        values = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
        image = Image.fromarray(values).convert(mode)
    exif = Image.Exif()
    if orientation:
        exif[0x112] = orientation
    content = io.BytesIO()
    image.save(content, form, **({} if form in REFUSED else dict(exif=exif)))
    return content.getvalue()


def damaged(content, how, share, rng):
    at = int(share * len(content))
    if how == 'cut':
        return content[:at]
    if how == 'noise':
        return content[:at] + rng.bytes(len(content) - at)
    changed = bytearray(content)
    if how == 'bytes':
        for i in rng.integers(0, len(content), 1 + at // 50):
            changed[i] = rng.integers(256)
    if how == 'header':
        changed[at % min(len(content), 64)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def run(tool, monkeypatch, capsys, *args):
    """Exit status and lines of standard error."""
    monkeypatch.setattr(sys, 'argv', ['predict_onnx.py', *map(str, args)])
    capsys.readouterr()
    with warnings.catch_warnings():
        # Pillow's, of damage: what counts is what comes of it.
        warnings.simplefilter('ignore')
        try:
            tool.main()
            status = 0
        except SystemExit as leaving:
            status = leaving.code
    return status, capsys.readouterr().err.splitlines()


def judge(result, path, out):
    """Check that a file was used or refused; returns whether it was used."""
    status, lines = result
    files = {p.name for p in out.iterdir()} if out.exists() else set()
    if status:
        assert status == 1
        assert lines[0].startswith('error: ') and str(path) in lines[0]
        assert files <= {'predictions.json'}
        return False
    text = (out / 'predictions.json').read_text('utf-8')
    (entry,) = json.loads(text, parse_constant=pytest.fail)['images']
    assert entry['file'] == str(path)
    with Image.open(out / entry['picture']) as drawn:
        drawn.load()
    assert files == {'predictions.json', entry['picture'], entry['label_map']}
    return True


side = st.integers(1, 90)
thin = st.tuples(st.integers(1, 2), st.integers(100, 3_000))


@settings(
    max_examples=DRAWS,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    model=st.sampled_from(['fit', 'open']),
    size=st.tuples(side, side) | thin | thin.map(lambda p: p[::-1]),
    kind=st.sampled_from([(f, m) for f, ms in FORMATS.items() for m in ms]),
    suffix=st.sampled_from([None, None, '.png', '.jpg', '']),
    orientation=st.just(0) | st.integers(0, 9),
    damage=st.none()
    | st.tuples(
        st.sampled_from(['cut', 'noise', 'bytes', 'header']), st.floats(0, 1)
    ),
    seed=st.integers(0, 2**16),
)
def test_an_image_is_predicted_or_refused_in_one_line(
    model, size, kind, suffix, orientation, damage, seed,
    tool, folder, monkeypatch, capsys,
):  # fmt: skip
    rng = np.random.default_rng(seed)
    form, mode = kind
    content = encoded(size, form, mode, orientation, rng)
    if damage:
        content = damaged(content, *damage, rng)
    suffix = f'.{form.lower()}' if suffix is None else suffix
    path, out = folder / f'image{suffix}', folder / 'out'
    path.write_bytes(content)
    args = (folder / f'{model}.onnx', path, '--out', out, '--threads', 1)
    try:
        used = judge(run(tool, monkeypatch, capsys, *args), path, out)
    finally:
        path.unlink()
        shutil.rmtree(out, ignore_errors=True)
    if form in REFUSED:
        assert not used
    elif mode != 'F' and not damage:
        assert used
