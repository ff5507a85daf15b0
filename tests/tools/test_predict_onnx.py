"""Files of a few nodes, whose predictions can be told from the pixels."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import cv2
import matplotlib
import mmcv
import numpy as np
import pytest
from mmcv.transforms import CenterCrop, RandomGrayscale, Resize
from onnx import TensorProto, helper, load, numpy_helper, parser, save
from PIL import Image

TOOL = Path(__file__).parents[2] / 'tools' / 'deployment' / 'predict_onnx.py'
spec = importlib.util.spec_from_file_location('predict_onnx', TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

# Has Cyrillic and accents, no Chinese.
DEJAVU = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / 'DejaVuSans.ttf'
# Whatever is not of the standard library must be one of its four.
GUARD = """
import runpy, sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in (
            'torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg',
            'mmpretrain', 'onnx', 'scipy', 'anchorformer_mm'):
            raise ImportError(f'{name} must not be imported')
sys.meta_path.insert(0, Guard())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""
F32 = np.float32
BOXES = dict(
    boxes=F32([[8, 4, 24, 12], [0, 0, 64, 64]]),
    scores=F32([0.9, 0.2]),
    labels=np.int64([2, 0]),
)
COMPUTED = dict(
    segmentation=dict(logits='Identity(floats)'),
    classification=dict(scores='ReduceMean<axes=[2, 3], keepdims=0>(floats)'),
)


def write_model(path, kind, *, arrays=None, dtype='float', **meta):
    """Classes are colours: of the mean pixel, or of each pixel.

    A detector, and any file with ``arrays``, gives the same for every image.
    """
    arrays = dict(BOXES if kind == 'detection' else {}, **arrays or {})
    outputs = {name: f'Identity({name}_)' for name in arrays}
    outputs = outputs or COMPUTED[kind]
    nodes = ' '.join(f'{name} = {node}' for name, node in outputs.items())
    ports = (f'{"int64" if n == "labels" else "float"}[] {n}' for n in outputs)
    model = parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 17]>
        graph ({dtype}[1,3,h,w] images) => ({', '.join(ports)})
        {{ floats = Cast<to = 1>(images) {nodes} }}"""
    )
    for name, array in arrays.items():
        tensor = numpy_helper.from_array(array, f'{name}_')
        model.graph.initializer.append(tensor)
    default = dict(task=kind, classes=['red', 'green', 'blue'], preprocess=[])
    properties = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in (default | meta).items()
        if value is not None
    }
    helper.set_model_props(model, properties)
    save(model, path)
    return path


def write_image(path, pixels, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **kwargs)
    return path


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run the tool in a folder; gives status, output and lines of errors."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        monkeypatch.setattr(sys, 'argv', ['predict_onnx.py', *map(str, args)])
        status = 0
        try:
            tool.main()
        except SystemExit as end:
            # What Python itself does with a message.
            status = 1
            print(end.code, file=sys.stderr)
        printed = capfd.readouterr()
        return status, printed.out, printed.err.splitlines()

    return call


@pytest.fixture(params=['onnx', 'openvino', 'openvino-bf16'])
def runtime(request):
    """Gives options of the tool."""
    if request.param != 'onnx':
        pytest.importorskip('openvino')
    return '--runtime', request.param


def results_in(folder):
    return json.loads((folder / 'predictions.json').read_text('utf-8'))


# ------------------------------------------------------------ preprocessing


@pytest.mark.parametrize('shape', [(37, 80), (80, 37), (50, 50)])
def test_steps_are_those_of_the_libraries(shape):
    from mmpretrain.datasets.transforms import ResizeEdge

    image = noise(*shape)
    steps = [
        dict(op='resize', size=[40, 60], keep_ratio=True),
        dict(op='resize_short_edge', size=45, interpolation='bicubic'),
        dict(op='center_crop', size=[31, 44]),
        dict(op='grey'),
    ]
    transforms = [
        Resize((60, 40), keep_ratio=True),
        ResizeEdge(45, interpolation='bicubic'),
        CenterCrop((44, 31)),
        RandomGrayscale(prob=1.0, keep_channels=True),
    ]
    for step, transform in zip(steps, transforms, strict=True):
        # As mmcv has it: blue, green, red.
        wanted = transform(dict(img=image[..., ::-1]))['img'][..., ::-1]
        assert np.array_equal(tool.preprocess(image, [step]).pixels, wanted)
    pad = dict(op='pad', size=None, divisor=32, value=[1.5, 2.5, 3.5])
    wanted = mmcv.impad_to_multiple(F32(image), 32, (1.5, 2.5, 3.5))
    assert np.array_equal(tool.preprocess(image, [pad]).pixels, wanted)


@pytest.mark.parametrize(
    'kind',
    ['RGB', 'L', 'LA', 'RGBA', '1', 'P', '16 bits', 'CMYK', 'oriented'],
)
def test_images_are_read_as_opencv_reads_them(tmp_path, kind):
    image = Image.fromarray(cv2.GaussianBlur(noise(48, 64), (0, 0), 3))
    jpeg, exif = kind in ('CMYK', 'oriented'), Image.Exif()
    path = tmp_path / ('photo.jpg' if jpeg else 'photo.png')
    if kind == 'oriented':
        exif[0x112] = 6
    elif kind == '16 bits':
        deep = np.asarray(image.convert('L')).astype(np.uint16) * 256 + 77
        image = Image.fromarray(deep)
    else:
        image = image.convert(kind)
    image.save(path, exif=exif, quality=95)
    ours = tool.read_image(path).astype(int)
    theirs = cv2.imread(str(path))[..., ::-1]
    assert ours.shape == theirs.shape
    # Decoders of JPEG differ by a level or two.
    assert np.abs(ours - theirs).max() <= 3 * jpeg


@pytest.mark.parametrize('crops', [False, True])
@pytest.mark.parametrize('shape', [(131, 77), (100, 120), (150, 150)])
def test_boxes_go_back_to_where_they_come_from(shape, crops):
    height, width = shape
    image = np.zeros((height, width, 3), np.uint8)
    true = np.array([width // 3, height // 4, width // 2, height // 2 + 9])
    image[true[1] : true[3], true[0] : true[2]] = 255
    steps = [
        dict(op='resize', size=[160, 240], keep_ratio=True),
        dict(op='pad', size=[240, 240], divisor=None, value=[0, 0, 0]),
    ]
    if crops:
        steps = [
            dict(op='resize_short_edge', size=180),
            dict(op='center_crop', size=[170, 160]),
        ]
    prepared = tool.preprocess(image, steps)
    rows, columns = np.nonzero(prepared.pixels[..., 0] > 127)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    outputs = dict(boxes=F32([box]), scores=F32([1]), labels=np.int64([0]))
    model = tool.Model(*(None, 'detection', ['white'], steps, [], None, {}))
    args = type('Args', (), dict(score_thr=0.5))
    found = tool.detect(model, outputs, image, prepared, args)
    assert np.abs(found['detections'][0]['box'] - true).max() <= 1.5


# ---------------------------------------------------------------- pictures


@pytest.fixture
def folder(tmp_path):
    """Images of one or two colours."""
    write_image(tmp_path / 'images/a.jpg', np.full((40, 80, 3), (250, 5, 5)))
    half = np.full((60, 30, 3), (5, 250, 5))
    half[:20] = (5, 5, 250)
    write_image(tmp_path / 'images/b.webp', half, lossless=True)
    (tmp_path / 'images' / 'notes.txt').write_text('no image')
    return tmp_path


STEPS = [
    dict(op='resize', size=[64, 64], keep_ratio=True, interpolation='area'),
    dict(op='pad', size=[64, 64], divisor=None, value=[0, 0, 0]),
]


def predict(folder, task, runtime):
    """Run the tool without all that it must do without."""
    write_model(folder / 'm.onnx', task, preprocess=STEPS)
    args = ['m.onnx', 'images', '--out', 'out', '--threads', '1', *runtime]
    done = subprocess.run(
        [sys.executable, '-c', GUARD, TOOL, *args],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = results_in(folder / 'out')['images']
    assert [image['picture'] for image in results] == ['a.jpg', 'b.png']
    return results


def test_a_classifier_alone_tells_colours(folder, runtime):
    images = predict(folder, 'classification', runtime)
    assert [i['top'][0]['name'] for i in images] == ['red', 'green']
    picture = Image.open(folder / 'out' / 'b.png')
    # The classes are below; the image above stays as it is.
    assert picture.height > 60
    assert picture.getpixel((10, 5)) == (5, 5, 250)


def test_a_segmentor_alone_labels_every_pixel(folder, runtime):
    images = predict(folder, 'segmentation', runtime)
    assert [s['name'] for s in images[1]['segments']] == ['green', 'blue']
    labels = np.asarray(Image.open(folder / 'out' / images[1]['label_map']))
    assert labels.shape == (60, 30)
    assert (labels[:19] == 2).all() and (labels[21:] == 1).all()
    assert images[0]['label_map'] == 'a_labels.png'


def test_a_detector_alone_finds_and_draws(folder, runtime):
    images = predict(folder, 'detection', runtime)
    # The second box has a score below 0.3; 64 of 80 px are left of the width.
    (found,) = images[0]['detections']
    assert found['box'] == pytest.approx([10, 5, 30, 15])
    assert (found['name'], found['label']) == ('blue', 2)
    picture = np.asarray(Image.open(folder / 'out' / 'a.jpg'), int)
    assert picture.shape == (40, 80, 3)
    red = np.abs(picture - (250, 5, 5)).max(axis=2) < 40
    assert red[20:, 40:].all()
    assert not red[15, 10:30].any()


@pytest.mark.parametrize(
    ('names', 'inputs'),
    [
        # Pictures in the same sub-folders.
        (('cam1/1.jpg', 'cam2/1.jpg', 'deep/cam1/1.jpg'), ['in']),
        # Names that would be the same of pictures or label maps.
        (('a.png', 'a.bmp', 'a.jpg', 'a_labels.png', 'A.png'), ['in']),
        # Found more than once.
        (
            ('a/1.png', 'a/b/2.png', 'a/b/3.webp'),
            ['in/a/**', 'in', 'in/a/1.png', 'in/a/*'],
        ),
    ],
)
def test_every_image_has_results_of_its_own(run, tmp_path, names, inputs):
    for i, name in enumerate(names):
        write_image(tmp_path / 'in' / name, noise(8, 9 + i))
    (tmp_path / 'in' / 'notes.txt').touch()
    model = write_model(tmp_path / 'm.onnx', 'segmentation')
    assert run(model, *inputs, '--out', 'out')[0] == 0
    images = results_in(tmp_path / 'out')['images']
    files = sorted(image['file'] for image in images)
    assert files == sorted(f'in/{name}' for name in names)
    if 'cam1/1.jpg' in names:
        assert {i['picture'] for i in images} == {*names}
    written = [i[key] for i in images for key in ('picture', 'label_map')]
    assert len({name.lower() for name in written}) == 2 * len(names)
    for image in images:
        for key in ('picture', 'label_map'):
            with Image.open(tmp_path / 'out' / image[key]) as opened:
                assert opened.size == (image['width'], 8)


def test_a_damaged_image_is_named_and_the_others_go_on(run, folder):
    model = write_model(folder / 'm.onnx', 'classification')
    for name in ('aa.png', 'c.jpg'):
        path = write_image(folder / 'images' / name, noise(50, 50))
        path.write_bytes(path.read_bytes()[:1500])
    (folder / 'images' / 'empty.png').touch()
    status, out, errors = run(model, 'images', '--out', 'out')
    assert status == 1
    assert len(out.splitlines()) == 2
    named = [line for line in errors if line.startswith('error: ')]
    for line, name in zip(named, ('aa', 'c', 'empty'), strict=True):
        assert f'images/{name}.' in line
    found = [e['picture'] for e in results_in(folder / 'out')['images']]
    assert found == ['a.jpg', 'b.png']


def test_names_of_any_alphabet_are_drawn(run, folder, monkeypatch):
    monkeypatch.setattr(tool, 'FONT_FOLDERS', ())
    names = ['кот', 'Äpfel', '猫']

    def picture(classes):
        args = ('images/a.jpg', '--out', 'o', '--font', DEJAVU)
        write_model(folder / 'm.onnx', 'classification', classes=classes)
        status, _, errors = run('m.onnx', *args)
        assert status == 0
        return (folder / 'o' / 'a.jpg').read_bytes(), errors

    drawn, errors = picture(names[:2])
    assert errors == []
    # What no font has becomes a number, in the picture only.
    more, errors = picture(names)
    assert len(errors) == 1 and '--font' in errors[0] and '猫' in errors[0]
    assert results_in(folder / 'o')['classes'] == names
    assert more == drawn
    numbers, _ = picture(['class 0', 'class 1'])
    assert drawn != numbers


def test_a_font_of_the_system_is_found(folder, monkeypatch):
    (folder / 'fonts').mkdir()
    shutil.copy(DEJAVU, folder / 'fonts')
    (folder / 'fonts' / 'broken.ttf').write_bytes(b'junk')
    folders = (str(folder), str(folder / 'no'))
    monkeypatch.setattr(tool, 'FONT_FOLDERS', folders)
    fonts = tool.find_fonts(['cat', 'кот', '猫'], None)
    assert fonts['cat'] is fonts[''] and '猫' not in fonts
    assert Path(fonts['кот'].path) == folder / 'fonts' / DEJAVU.name


def test_names_do_nothing_to_the_terminal(run, folder):
    names = ['\x1b[2J', 'b\nerror: c', '\ud800', '\u2028', 'plain']
    arrays = dict(scores=F32([[5, 4, 3, 2, 1]]))
    model = write_model(
        folder / 'm.onnx', 'classification', arrays=arrays, classes=names
    )
    status, out, _ = run(model, 'images/a.jpg', '--out', 'out')
    assert status == 0
    assert len(out.splitlines()) == 1 and '\x1b' not in out
    wanted = ['?[2J', 'b?error: c', '?', '?', 'plain']
    assert results_in(folder / 'out')['classes'] == wanted


def write_video(path, frames):
    codec = cv2.VideoWriter_fourcc(*'MJPG')
    writer = cv2.VideoWriter(str(path), codec, 10, (48, 32))
    for frame in frames:
        writer.write(np.broadcast_to(np.uint8(frame), (32, 48, 3)).copy())
    writer.release()
    return path


def count_frames(path):
    return cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)


def test_videos_are_drawn_and_told_frame_by_frame(run, tmp_path):
    write_video(tmp_path / 'é.avi', [(255, 0, 0), (0, 0, 255), (0, 255, 0)])
    model = write_model(tmp_path / 'm.onnx', 'segmentation')
    status, _, errors = run(model, 'é.avi', '--out', 'out')
    assert (status, errors) == (0, [])
    images = results_in(tmp_path / 'out')['images']
    assert [image['frame'] for image in images] == [0, 1, 2]
    assert {image['picture'] for image in images} == {'é.mp4'}
    assert count_frames(tmp_path / 'out' / 'é.mp4') == 3
    found = [image['segments'][0]['name'] for image in images]
    assert found == ['blue', 'red', 'green']
    assert (tmp_path / 'out' / images[2]['label_map']).is_file()


def test_a_cut_video_is_named_and_keeps_what_can_be_read(run, tmp_path):
    model = write_model(tmp_path / 'm.onnx', 'detection')
    frames = [noise(32, 48, i) for i in range(20)]
    cut = write_video(tmp_path / 'cut.avi', frames)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (tmp_path / 'junk.mp4').write_bytes(b'junk')
    write_video(tmp_path / 'whole.avi', frames)
    # Where its video would be written.
    (tmp_path / 'out' / 'whole.mp4').mkdir(parents=True)
    write_image(tmp_path / 'a.png', noise(9, 9))
    names = ('cut.avi', 'junk.mp4', 'whole.avi')
    status, _, errors = run(model, *names, 'a.png', '--out', 'out')
    assert status == 1
    named = [line for line in errors if line.startswith('error: ')]
    for line, name in zip(named, names, strict=True):
        assert name in line
    images = results_in(tmp_path / 'out')['images']
    files = [image['file'] for image in images]
    assert files.count('cut.avi') == len(files) - 1 > 3
    assert count_frames(tmp_path / 'out' / 'cut.mp4') == len(files) - 1
    assert not (tmp_path / 'out' / 'junk.mp4').exists()


@pytest.mark.parametrize('name', ['3', 'webcam:3'])
def test_a_webcam_is_predicted_until_it_is_ended(
    run, tmp_path, monkeypatch, name
):
    frame = True, np.zeros((20, 30, 3), np.uint8)
    camera = mock.Mock()
    camera.return_value.get.return_value = 0.0
    camera.return_value.read.side_effect = [frame, frame, KeyboardInterrupt]
    monkeypatch.setattr(cv2, 'VideoCapture', camera)
    model = write_model(tmp_path / 'm.onnx', 'detection')
    assert run(model, name, '--out', 'out')[0] == 0
    camera.assert_called_once_with(3)
    images = results_in(tmp_path / 'out')['images']
    assert [image['frame'] for image in images] == [0, 1]
    assert (tmp_path / 'out' / 'webcam3.mp4').is_file()


# ------------------------------------------------------------------ errors


# The last one ONNX Runtime takes for an address in its own memory.
@pytest.mark.parametrize(
    'location', ['secret', '../secret', '{}/secret', '*/_ORT_MEM_ADDR_/*']
)
@pytest.mark.parametrize('place', ['initializer', 'constant'])
def test_no_other_file_is_read(run, folder, location, place, runtime):
    (folder / 'x').mkdir()
    for path in (folder / 'secret', folder / 'x' / 'secret'):
        path.write_bytes(np.float32([[5, 6, 7]]).tobytes())
    arrays = dict(scores=F32([[0.1, 0.2, 0.7]]))
    path = folder / 'x' / 'm.onnx'
    write_model(path, 'classification', arrays=arrays)
    model = load(path)
    (tensor,) = model.graph.initializer
    tensor.ClearField('raw_data')
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key='location', value=location.format(folder))
    if place == 'constant':
        node = helper.make_node('Constant', [], ['scores_'], value=tensor)
        model.graph.node.insert(0, node)
        model.graph.initializer.pop()
    path.write_bytes(model.SerializeToString())
    status, _, errors = run(path, 'images', '--out', 'out', *runtime)
    assert status == 1
    assert len(errors) == 1 and 'm.onnx is no usable' in errors[0]
    assert not (folder / 'out').exists()


USUAL = ('m.onnx', 'images')


@pytest.mark.parametrize(
    ('change', 'args', 'words'),
    [
        (dict(task=None), USUAL, 'm.onnx must have in its metadata a task'),
        (dict(task='tracking'), USUAL, 'tracking'),
        (dict(classes='['), USUAL, 'classes'),
        (dict(classes='{"a": 1}'), USUAL, 'classes'),
        (dict(preprocess=None), USUAL, 'preprocess'),
        (dict(preprocess='[' * 100_000), USUAL, 'preprocess'),
        (dict(head='[]'), USUAL, 'head'),
        (dict(dtype='int64'), USUAL, '64'),
        (dict(task='detection'), USUAL, '--with-nms'),
        ({}, ('no.onnx', 'images'), 'model not found: no.onnx'),
        ({}, ('junk.png', 'images'), 'junk.png is no usable ONNX file'),
        ({}, (*USUAL, 'no.png'), 'image not found: no.png'),
        ({}, ('m.onnx', 'empty'), 'no image in the folder empty'),
        ({}, ('m.onnx', 'no/*.jpg'), 'image not found: no/*.jpg'),
        ({}, (*USUAL, '--out', 'junk.png'), 'junk.png'),
        ({}, (*USUAL, '--out', 'images'), 'would overwrite'),
        ({}, (*USUAL, '--font', 'junk.png'), 'junk.png is no font'),
    ],
)
def test_unusable_files_are_one_line(
    run, folder, change, args, words, runtime
):
    write_model(folder / 'm.onnx', 'classification', **change)
    (folder / 'junk.png').write_bytes(b'junk')
    (folder / 'empty').mkdir()
    status, _, errors = run(*args, *runtime)
    assert status == 1
    assert len(errors) == 1 and errors[0].startswith('error: ')
    assert words in errors[0]
    assert not (folder / 'predictions').exists()


RESIZE = dict(op='resize')
COLOURS, MAP = 'classification', 'segmentation'


@pytest.mark.parametrize(
    ('task', 'arrays', 'step'),
    [
        (COLOURS, None, RESIZE),
        (COLOURS, None, RESIZE | dict(size=[0, 0])),
        (COLOURS, None, RESIZE | dict(size=[10**6] * 2)),
        (COLOURS, None, RESIZE | dict(size=[4, 4], interpolation=['x'])),
        (COLOURS, None, dict(op='resize_short_edge', size=[4])),
        (COLOURS, None, dict(op='pad', size=[2**15] * 2)),
        (COLOURS, None, dict(op='pad', size=[9, 9])),
        (COLOURS, None, dict(op='grey', p=1)),
        (COLOURS, None, dict(op='rotate')),
        (COLOURS, None, dict(op=['grey'])),
        (COLOURS, None, 7),
        (COLOURS, dict(scores=F32(3)), None),
        (COLOURS, dict(scores=F32([[1, np.nan]])), None),
        (MAP, dict(logits=np.zeros((1, 2, 3, 3), F32)), None),
        (MAP, dict(logits=np.zeros((1, 0, 40, 80), F32)), None),
        ('detection', dict(scores=F32([1, 2, 3])), None),
        ('detection', dict(boxes=F32([[0, 1], [0, 1]])), None),
    ],
)
def test_what_cannot_be_computed_is_one_line(run, folder, task, arrays, step):
    steps = [step] if step else []
    write_model(folder / 'm.onnx', task, arrays=arrays, preprocess=steps)
    status, out, errors = run('m.onnx', 'images/a.jpg', '--out', 'out')
    assert (status, out) == (1, '')
    assert len(errors) == 2 and 'images/a.jpg' in errors[0]
    assert step is None or str(step)[:40] in errors[0]
    assert results_in(folder / 'out')['images'] == []


def test_a_runtime_that_is_not_there_is_one_line(run, folder, monkeypatch):
    model = write_model(folder / 'm.onnx', 'classification')
    for name, package in (('onnx', 'onnxruntime'), ('openvino', 'openvino')):
        monkeypatch.setitem(sys.modules, package, None)
        status, _, errors = run(model, 'images', '--runtime', name)
        assert status == 1
        words = f'{package} is not installed: pip install {package}'
        assert errors == [f'error: {words}']
