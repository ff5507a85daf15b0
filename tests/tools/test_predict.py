"""Small models without training, on every kind of input."""

import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from anchorformer_mm.analysis.pictures import Part
from anchorformer_mm.apis import build_model, predict, read_config
from anchorformer_mm.utils.errors import UsageError

CONFIGS = Path(__file__).parents[2] / 'configs'
TOOL = runpy.run_path(str(CONFIGS.parent / 'tools' / 'predict.py'))
find_sources = TOOL['find_sources']
NAMES = dict(
    detection='picodet_anchorformer_t_digits',
    segmentation='semfpn_anchorformer_t_digits',
    classification='anchorformer_t_digits',
)


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Config and untrained weights of each task."""
    folder, made = tmp_path_factory.mktemp('checkpoints'), {}
    torch.manual_seed(0)
    for task, name in NAMES.items():
        config = str(CONFIGS / f'{name}.py')
        weights = dict(
            state_dict=build_model(read_config(config)).state_dict()
        )
        made[task] = config, str(folder / f'{task}.pth')
        torch.save(weights, made[task][1])
    return made


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_image(path, height=40, width=60):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(height)
    blocks = rng.integers(0, 256, (4, 6, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(blocks, (width, height)))
    return path


def write_video(path, frames=4):
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10, (64, 48)
    )
    rng = np.random.default_rng(0)
    for _ in range(frames):
        writer.write(rng.integers(0, 256, (48, 64, 3), np.uint8))
    writer.release()
    return path


def results_in(folder):
    return json.loads((folder / 'predictions.json').read_text('utf-8'))


def count_frames(path):
    capture = cv2.VideoCapture(str(path))
    return len(list(iter(lambda: capture.read()[0], False)))


@pytest.mark.smoke
@pytest.mark.parametrize('task', NAMES)
def test_images_are_predicted_and_a_damaged_one_is_named(
    task, checkpoints, run_tool, folder
):
    names = ['cam 1/1.jpg', 'cam 2/1.jpg', 'ü.png']
    for i, name in enumerate(names):
        write_image(folder / 'in' / name, 40 + i)
    cut = write_image(folder / 'in' / 'cut.jpg')
    cut.write_bytes(cut.read_bytes()[:500])
    status, out, errors = run_tool(
        'predict.py',
        *checkpoints[task],
        'in',
        '--score-thr',
        '0',
        '--out',
        'o',
    )
    assert status == 1
    named = [line for line in errors if line.startswith('error: ')]
    assert len(named) == 1 and str(Path('in/cut.jpg')) in named[0]
    assert '3 images' in out
    results = results_in(folder / 'o')
    images = {image['file_name']: image for image in results['images']}
    assert sorted(images) == names
    for name, image in images.items():
        drawn = cv2.imread(str(folder / 'o' / image['picture']))
        size = image['height'], image['width']
        assert size == cv2.imread(str(folder / 'in' / name)).shape[:2]
        assert task == 'classification' or drawn.shape[:2] == size
        if task == 'segmentation':
            path = folder / 'o' / image['label_map']
            labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert labels.shape == size
            best = image['classes'][0]
            share = (labels == best['label']).mean()
            assert best['share'] == pytest.approx(share)
            assert best['name'] == results['classes'][best['label']]
        if task == 'classification':
            scores = [best['score'] for best in image['classes']]
            assert scores == sorted(scores, reverse=True) and len(scores) == 5


def test_boxes_are_in_the_form_of_coco(checkpoints, run_tool, folder):
    path = write_image(folder / 'a.png')
    config, weights = checkpoints['detection']
    args = (config, weights, 'a.png', '--score-thr', '0', '--out', 'o')
    assert run_tool('predict.py', *args)[0] == 0
    coco = COCO(str(folder / 'o' / 'predictions.json'))
    assert coco.loadImgs(1)[0]['file_name'] == 'a.png'
    assert len(coco.cats) == 10 and min(coco.cats) == 1
    annotations = coco.dataset['annotations']
    found = predict(config, path, checkpoint=weights).pred_instances
    boxes = np.array([a['bbox'] for a in annotations])
    boxes[:, 2:] += boxes[:, :2]
    order = found.scores.argsort(descending=True)
    np.testing.assert_allclose(boxes, found.bboxes[order], atol=1e-3)
    labels = [a['category_id'] - 1 for a in annotations]
    assert labels == found.labels[order].tolist()
    # Results of COCO as they are.
    assert len(coco.loadRes(annotations).anns) == len(found)


def test_masks_are_in_the_form_of_coco():
    mask = np.zeros((20, 30), bool)
    mask[5:9, 10:20] = True
    found = TOOL['annotation'](Part(2, 0.5, mask=mask))
    assert (found['bbox'], found['area']) == ([10, 5, 10, 4], 40)
    assert found['category_id'] == 3
    box = np.float32([9, 4, 21, 10])
    boxed = TOOL['annotation'](Part(2, 0.5, box=box, mask=mask))
    assert boxed == found | dict(bbox=[9, 4, 12, 6])
    assert json.loads(json.dumps(boxed)) == boxed


def test_videos_are_drawn_and_a_cut_one_is_named(
    checkpoints, run_tool, folder
):
    write_video(folder / 'é.avi')
    cut = write_video(folder / 'cut.avi', 30)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (folder / 'junk.mp4').write_bytes(b'junk')
    status, _, errors = run_tool(
        'predict.py', *checkpoints['segmentation'], 'é.avi', 'cut.avi',
        'junk.mp4', '--out', 'o',
    )  # fmt: skip
    assert status == 1
    named = [line for line in errors if line.startswith('error: ')]
    assert 'cut.avi' in named[0] and 'junk.mp4' in named[1]
    images = results_in(folder / 'o')['images']
    frames = [i['frame'] for i in images if i['file_name'] == 'é.avi']
    assert frames == [0, 1, 2, 3]
    assert count_frames(folder / 'o' / 'pictures' / 'é.mp4') == 4
    assert len({i['label_map'] for i in images}) == len(images)
    assert all((folder / 'o' / i['label_map']).is_file() for i in images)
    pictures = {p.name for p in (folder / 'o' / 'pictures').iterdir()}
    assert pictures == {'é.mp4', 'cut.mp4'}


class Camera:
    """A webcam that is ended by Ctrl+C after two frames."""

    def __init__(self, number):
        assert number == 1
        self.left = 2

    def get(self, key):
        return 0.0

    def release(self):
        pass

    def read(self):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return True, np.zeros((20, 30, 3), np.uint8)


def test_a_webcam_is_predicted_until_it_is_ended(
    checkpoints, run_tool, folder, monkeypatch
):
    monkeypatch.setattr(cv2, 'VideoCapture', Camera)
    args = (*checkpoints['classification'], 'webcam:1', '--out', 'o')
    assert run_tool('predict.py', *args)[0] == 0
    images = results_in(folder / 'o')['images']
    assert [image['frame'] for image in images] == [0, 1]
    assert (folder / 'o' / 'pictures' / 'webcam1.mp4').is_file()


def test_a_name_that_no_font_has_is_warned_of(checkpoints, run_tool, folder):
    config, weights = checkpoints['classification']
    classes = ['кот', chr(0x10FFFD), *'cdefghij']
    state = torch.load(weights, weights_only=True)
    meta = dict(dataset_meta=dict(classes=classes))
    torch.save(state | dict(meta=meta), folder / 'own.pth')
    write_image(folder / 'a.jpg')
    args = (config, 'own.pth', 'a.jpg', '--out', 'o')
    status, _, errors = run_tool('predict.py', *args)
    assert status == 0
    assert sum('--font' in line for line in errors) == 1
    assert results_in(folder / 'o')['classes'] == classes


# ------------------------------------------------------------------- inputs


def found_by(*inputs, out='out'):
    sources, _ = find_sources([*map(str, inputs)], Path(out))
    return [source.file_name for source in sources]


@pytest.mark.parametrize(
    ('inputs', 'wanted'),
    [
        (['in'], ['a.jpg', 'cam/a.jpg']),
        (['in/*'], ['a.jpg', 'cam/a.jpg', 'v.mp4']),
        (['in/**/*.jpg', 'in', 'in/a.jpg'], ['a.jpg', 'cam/a.jpg']),
        (['in/notes.txt'], ['notes.txt']),
        (['in/cam/[a].png'], ['[a].png']),
        (['in/v.mp4', '0', 'webcam:2'], ['in/v.mp4', 'webcam0', 'webcam2']),
    ],
)
def test_inputs_are_found_once(folder, inputs, wanted):
    for name in ('a.jpg', 'cam/a.jpg', 'notes.txt', '.b.jpg', 'v.mp4'):
        (folder / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / 'in' / name).touch()
    if inputs == ['in/cam/[a].png']:
        (folder / inputs[0]).touch()
    found = [name.removesuffix('.mp4') for name in found_by(*inputs)]
    assert sorted(found) == [name.removesuffix('.mp4') for name in wanted]


def test_no_two_results_are_in_one_file(folder):
    names = ['a.jpg', 'a.png', 'A.jpg', 'a_2.bmp', 'b/a.jpg', 'a.mp4']
    for name in names:
        (folder / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / 'in' / name).touch()
    sources, root = find_sources(['in', 'in/a.mp4'], Path('out'))
    assert Path(root) == folder / 'in'
    assert {source.file_name for source in sources} == set(names)
    for kind in ('picture', 'label_map'):
        results = {getattr(source, kind).lower() for source in sources}
        assert len(results) == len(names)


def test_results_of_earlier_runs_are_no_input(folder):
    for name in ('a.jpg', 'out/pictures/a.jpg'):
        write_image(folder / name)
    assert found_by('.') == ['a.jpg']
    assert found_by('out', out='new') == ['a.jpg']


@pytest.mark.parametrize('name', ['none.jpg', 'none/*.jpg', 'empty', '12'])
def test_an_input_that_is_not_there_is_named(folder, name):
    (folder / 'empty').mkdir()
    (folder / '12').mkdir()
    with pytest.raises(UsageError) as caught:
        found_by(name)
    assert str(caught.value).endswith(name)


def test_an_input_is_not_overwritten(folder):
    write_image(folder / 'pictures' / 'a.jpg')
    with pytest.raises(UsageError, match=r'a\.jpg would be overwritten'):
        found_by('pictures', out='.')


def test_mistakes_are_told_before_the_model_is_built(run_tool, folder):
    status, _, errors = run_tool('predict.py', 'none.py', 'none.pth', 'a.jpg')
    assert status == 2 and 'a.jpg' in errors[-1]
    assert not list(folder.iterdir())
