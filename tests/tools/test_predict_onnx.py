"""Files of a few nodes, whose predictions can be told from the pixels."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.transforms import CenterCrop
from onnx import TensorProto, helper, numpy_helper, save
from PIL import Image

TOOL = Path(__file__).parents[2] / 'tools' / 'deployment' / 'predict_onnx.py'
spec = importlib.util.spec_from_file_location('predict_onnx', TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

CV2 = dict(
    nearest=cv2.INTER_NEAREST,
    bilinear=cv2.INTER_LINEAR,
    bicubic=cv2.INTER_CUBIC,
    area=cv2.INTER_AREA,
)
COLOURS = ['red', 'green', 'blue']
# Whatever is not of the standard library must be one of these three.
GUARD = """
import runpy, sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in (
            'torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg',
            'mmpretrain', 'cv2', 'onnx', 'scipy', 'anchorformer_mm'):
            raise ImportError(f'{name} must not be imported')
sys.meta_path.insert(0, Guard())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def write_model(
    path, task, *, steps=(), shape=(1, 3, 'h', 'w'), dtype='FLOAT', meta=None
):
    """Classes are colours: of the mean pixel, or of each pixel. The detector
    finds the same two boxes in every image."""
    nodes, outputs, constants = [], [], []
    pixels = 'images'
    if dtype == 'UINT8':
        pixels = 'floats'
        nodes.append(helper.make_node('Cast', ['images'], [pixels], to=1))
    if task == 'classification':
        nodes += [
            helper.make_node('GlobalAveragePool', [pixels], ['mean']),
            helper.make_node('Flatten', ['mean'], ['flat']),
            helper.make_node('Softmax', ['flat'], ['scores']),
        ]
        outputs = [('scores', 'FLOAT')]
    elif task == 'segmentation':
        nodes.append(helper.make_node('Identity', [pixels], ['logits']))
        outputs = [('logits', 'FLOAT')]
    else:
        found = dict(
            boxes=np.float32([[8, 4, 24, 12], [0, 0, 64, 64]]),
            scores=np.float32([0.9, 0.2]),
            labels=np.int64([2, 0]),
            image_ids=np.int64([0, 0]),
        )
        for name, array in found.items():
            constants.append(constant(f'{name}_', array))
            nodes.append(helper.make_node('Identity', [f'{name}_'], [name]))
        outputs = [
            (n, 'INT64' if 'l' in n[:1] or '_' in n else 'FLOAT')
            for n in found
        ]
    kind = getattr(TensorProto, dtype)
    graph = helper.make_graph(
        nodes,
        'graph',
        [helper.make_tensor_value_info('images', kind, shape)],
        [
            helper.make_tensor_value_info(n, getattr(TensorProto, t), None)
            for n, t in outputs
        ],
        constants,
    )
    opsets = [helper.make_opsetid('', 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    given_meta = dict(
        task=task, classes=json.dumps(COLOURS), preprocess=json.dumps(steps)
    )
    helper.set_model_props(model, given_meta if meta is None else meta)
    save(model, path)
    return path


def write_image(path, pixels, **kwargs):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **kwargs)
    return path


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def run(folder, *args):
    return subprocess.run(
        [sys.executable, '-c', GUARD, TOOL, *map(str, args)],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def main(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['predict_onnx.py', *map(str, args)])
    tool.main()


def error_of(monkeypatch, capsys, *args):
    with pytest.raises(SystemExit) as leaving:
        main(monkeypatch, *args)
    assert leaving.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


side = st.integers(1, 60)


@settings(max_examples=60, deadline=None)
@given(side, side, side, side, st.sampled_from(sorted(CV2)))
def test_resizing_is_that_of_opencv(height, width, rows, columns, kind):
    image = noise(height, width, seed=height * 61 + width)
    ours = tool.resize(image, (rows, columns), kind)
    theirs = cv2.resize(image, (columns, rows), interpolation=CV2[kind])
    difference = np.abs(ours.astype(int) - theirs.reshape(ours.shape))
    assert difference.max() <= (0 if kind == 'nearest' else 1)


@pytest.mark.parametrize('shape', [(37, 80), (80, 37), (50, 50)])
def test_steps_are_those_of_mmcv(shape):
    image = noise(*shape)
    steps = [
        dict(op='resize', size=[40, 60], keep_ratio=True),
        dict(op='pad', size=None, divisor=32, value=[1.5, 2.5, 3.5]),
    ]
    ours = tool.preprocess(image, steps).pixels
    scaled = mmcv.imrescale(image, (60, 40))
    height, width = scaled.shape[:2]
    assert ours.shape[0] % 32 == ours.shape[1] % 32 == 0
    assert ours.shape[0] - height < 32 and ours.shape[1] - width < 32
    assert np.abs(ours[:height, :width] - scaled).max() <= 1
    assert (ours[height:] == [1.5, 2.5, 3.5]).all()
    assert (ours[:, width:] == [1.5, 2.5, 3.5]).all()

    crop = dict(op='center_crop', size=[31, 44])
    ours = tool.preprocess(image, [crop]).pixels
    theirs = CenterCrop((44, 31))(dict(img=image))['img']
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize('shape', [(37, 80), (80, 37), (50, 50)])
def test_the_short_edge_is_that_of_mmpretrain(shape):
    from mmpretrain.datasets.transforms import ResizeEdge

    image = noise(*shape)
    step = dict(op='resize_short_edge', size=45, interpolation='bicubic')
    ours = tool.preprocess(image, [step]).pixels
    resize = ResizeEdge(45, interpolation='bicubic')
    theirs = resize(dict(img=image))['img']
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_grey_is_that_of_mmcv():
    from mmcv.transforms import RandomGrayscale

    image = noise(40, 40)
    ours = tool.preprocess(image, [dict(op='grey')]).pixels
    grey = RandomGrayscale(prob=1.0, keep_channels=True)
    theirs = grey(dict(img=image[..., ::-1]))['img']
    assert np.array_equal(ours, theirs)


def photo_of(kind, folder):
    image = Image.fromarray(cv2.GaussianBlur(noise(48, 64), (0, 0), 3))
    path = folder / 'photo.png'
    if kind == '16 bits':
        deep = np.asarray(image.convert('L')).astype(np.uint16) * 256 + 77
        image = Image.fromarray(deep)
    elif kind == 'palette':
        image = image.quantize(32)
    elif kind == 'oriented':
        path = folder / 'photo.jpg'
        exif = Image.Exif()
        exif[0x112] = 6
        image.save(path, exif=exif, quality=95)
        return path
    else:
        if kind == 'CMYK':
            path = folder / 'photo.tif'
        image = image.convert(kind)
    image.save(path)
    return path


@pytest.mark.parametrize(
    'kind',
    ['RGB', 'L', 'LA', 'RGBA', '1', 'palette', '16 bits', 'oriented'],
)
def test_images_are_read_as_opencv_reads_them(tmp_path, kind):
    path = photo_of(kind, tmp_path)
    ours = tool.read_image(path).astype(int)
    theirs = cv2.imread(str(path))[..., ::-1]
    assert ours.shape == theirs.shape
    # Decoders of JPEG differ by a level or two.
    assert np.abs(ours - theirs).max() <= (3 if kind == 'oriented' else 0)


def test_printing_colours_are_read(tmp_path):
    red = Image.new('CMYK', (9, 9), (0, 255, 255, 0))
    red.save(tmp_path / 'red.tif')
    pixel = tool.read_image(tmp_path / 'red.tif')[0, 0]
    assert pixel[0] > 200 > 60 > pixel[1:].max()


@settings(max_examples=25, deadline=None)
@given(st.integers(60, 200), st.integers(60, 200), st.booleans())
def test_boxes_go_back_to_where_they_come_from(height, width, crops):
    image = np.zeros((height, width, 3), np.uint8)
    true = np.array([width // 3, height // 4, width // 2, height // 2 + 9])
    image[true[1] : true[3], true[0] : true[2]] = 255
    if crops:
        steps = [
            dict(op='resize_short_edge', size=180),
            dict(op='center_crop', size=[170, 160]),
        ]
    else:
        steps = [
            dict(op='resize', size=[160, 240], keep_ratio=True),
            dict(op='pad', size=[240, 240], divisor=None, value=[0, 0, 0]),
        ]
    prepared = tool.preprocess(image, steps)
    rows, columns = np.nonzero(prepared.pixels[..., 0] > 127)
    # What the crop cuts off cannot come back.
    if min(rows.min(), columns.min()) == 0 or columns.max() == 159:
        return
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    outputs = dict(boxes=np.float32([box]), scores=[1.0], labels=[0])
    model = tool.Model(None, None, 'detection', ['white'], steps)
    args = type('Args', (), dict(score_thr=0.5))
    found = tool.detect(model, outputs, image, prepared, args)
    assert np.abs(found['detections'][0]['box'] - true).max() <= 1.5


@pytest.fixture
def folder(tmp_path):
    """Images of one colour each, and steps that make them alike."""
    images = tmp_path / 'images'
    images.mkdir()
    write_image(images / 'a.jpg', np.full((40, 80, 3), (250, 5, 5)))
    half = np.full((60, 30, 3), (5, 250, 5))
    half[:20] = (5, 5, 250)
    write_image(images / 'b.webp', half, lossless=True)
    (images / 'notes.txt').write_text('no image')
    return tmp_path


STEPS = [
    dict(op='resize', size=[64, 64], keep_ratio=True, interpolation='area'),
    dict(op='pad', size=[64, 64], divisor=None, value=[0, 0, 0]),
]


def predict(folder, task, **kwargs):
    """Run the tool without all that it must do without."""
    write_model(folder / 'm.onnx', task, steps=STEPS, **kwargs)
    done = run(folder, 'm.onnx', 'images', '--out', 'out', '--threads', 1)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert ' ms' in done.stdout.splitlines()[0]
    results = json.loads((folder / 'out' / 'predictions.json').read_text())
    names = [image['picture'] for image in results['images']]
    assert names == ['a.jpg', 'b.png']
    written = sorted(p.name for p in (folder / 'out').iterdir())
    assert set(names) < set(written)
    return results['images'], written


def test_a_classifier_alone_tells_colours(folder):
    images, written = predict(folder, 'classification', dtype='UINT8')
    assert [i['top'][0]['name'] for i in images] == ['red', 'green']
    assert sum(c['score'] for c in images[0]['top']) == pytest.approx(1)
    picture = Image.open(folder / 'out' / 'b.png')
    # The bar is below; the image above stays as it is.
    assert picture.height > 60
    assert picture.getpixel((10, 5)) == (5, 5, 250)
    assert written == ['a.jpg', 'b.png', 'predictions.json']


def test_a_segmentor_alone_labels_every_pixel(folder):
    images, written = predict(folder, 'segmentation')
    assert [s['name'] for s in images[1]['segments']] == ['green', 'blue']
    labels = np.asarray(Image.open(folder / 'out' / images[1]['label_map']))
    assert labels.shape == (60, 30)
    assert (labels[:19] == 2).all() and (labels[21:] == 1).all()
    assert images[0]['label_map'] == 'a_labels.png' in written


def test_a_detector_alone_finds_and_draws(folder):
    images, _ = predict(folder, 'detection', shape=(1, 3, 64, 64))
    # The second box has a score below 0.3; 64 of 80 px are left of the width.
    (found,) = images[0]['detections']
    assert found['box'] == pytest.approx([10, 5, 30, 15])
    assert (found['name'], found['label']) == ('blue', 2)
    picture = np.asarray(Image.open(folder / 'out' / 'a.jpg'), int)
    assert picture.shape == (40, 80, 3)
    red = np.abs(picture - (250, 5, 5)).max(axis=2) < 40
    assert red[20:, 40:].all()
    assert not red[15, 10:30].any()


def test_a_file_of_one_size_refuses_others(folder, monkeypatch, capsys):
    model = write_model(
        folder / 'm.onnx', 'classification', shape=(1, 3, 32, 32)
    )
    image = folder / 'images' / 'a.jpg'
    out = folder / 'out'
    line = error_of(monkeypatch, capsys, model, image, '--out', out)
    assert line.endswith(
        f'{image}: {model} takes the shape [1, 3, 32, 32], but its '
        'preprocessing makes [1, 3, 40, 80] of this image'
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(task='detection', meta={}), 'no classes, preprocess, task in'),
        (
            dict(task='detection', steps=[dict(op='rotate')]),
            'preprocess[0] must be an object with an "op" of resize, resize_s',
        ),
        (
            dict(task='detection', steps=[dict(op='resize')]),
            "missing a required argument: 'size'",
        ),
        (
            dict(
                task='detection',
                steps=[dict(op='resize', size=[4, 4], interpolation='box')],
            ),
            'interpolation must be one of nearest, bilinear, bicubic, area, g',
        ),
        (
            dict(task='classification', shape=(8, 3, 32, 32)),
            'images go in one by one',
        ),
        (
            dict(
                task='classification',
                meta=dict(task='detection', classes='[]', preprocess='[]'),
            ),
            'got scores: export it with --with-nms',
        ),
        (
            dict(
                task='classification',
                meta=dict(task='tracking', classes='[]', preprocess='[]'),
            ),
            'task must be one of detection, segmentation, classification, got',
        ),
        (
            dict(
                task='classification',
                meta=dict(task='detection', classes='[', preprocess='[]'),
            ),
            "classes must be a JSON list, got '['",
        ),
    ],
)
def test_unusable_models_are_one_line(
    folder, monkeypatch, capsys, change, words
):
    model = write_model(folder / 'm.onnx', **change)
    line = error_of(
        monkeypatch, capsys, model, folder / 'images', '--out', folder / 'out'
    )
    assert line.startswith('error: ')
    assert words in line and 'm.onnx' in line
    assert not (folder / 'out').exists()


def test_bad_paths_are_one_line(folder, monkeypatch, capsys):
    good = write_model(folder / 'm.onnx', 'classification')
    junk = folder / 'junk.png'
    junk.write_bytes(b'junk')
    empty = folder / 'empty'
    empty.mkdir()
    images = folder / 'images'
    cases = [
        ((folder / 'no.onnx', images), 'model not found: '),
        ((junk, images), f'{junk} is no usable ONNX file: '),
        ((good, images, folder / 'no.png'), 'image not found: '),
        ((good, images, junk), f'cannot read {junk}: '),
        ((good, empty), 'no image in the folder '),
        ((good, images / 'a.jpg', images / 'a.jpg'), 'would both become'),
        ((good, images, '--out', junk), '--out must be a folder'),
        ((good, images, '--out', images), 'would overwrite'),
    ]
    monkeypatch.chdir(folder)
    for args, words in cases:
        assert words in error_of(monkeypatch, capsys, *args)
    assert not (folder / 'predictions').exists()


def test_an_image_that_breaks_off_leaves_nothing(folder, monkeypatch, capsys):
    model = write_model(folder / 'm.onnx', 'classification')
    path = write_image(folder / 'images' / 'c.png', noise(50, 50))
    path.write_bytes(path.read_bytes()[:3000])
    args = (model, folder / 'images', '--out', folder / 'out')
    assert f'cannot read {path}: ' in error_of(monkeypatch, capsys, *args)
    assert not (folder / 'out').exists()
    (folder / 'out').mkdir()
    error_of(monkeypatch, capsys, *args)
    assert list((folder / 'out').iterdir()) == []
