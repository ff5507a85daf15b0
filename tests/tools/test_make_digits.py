"""The embedded data set: its files, and the command that makes them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import make_digits
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from make_digits import DigitsSpec, encode_rle, write_digits
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from anchorformer_mm.datasets import DIGIT_CLASSES, Scans, digits, load_scans
from anchorformer_mm.utils.errors import UsageError

SMALL = DigitsSpec(num_train=40, num_val=12, scene_size=(96, 80))


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2)))
def test_run_lengths_decode_to_the_mask(mask):
    rle = coco_mask.frPyObjects(encode_rle(mask), *mask.shape)
    np.testing.assert_array_equal(coco_mask.decode(rle), mask)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num_train': 0}, 'num_train must be at least 1, got 0'),
        ({'num_val': -3}, 'num_val must be at least 1, got -3'),
        ({'seed': -1}, 'seed must be at least 0, got -1'),
        ({'scene_size': (192, 63)}, 'scene_size .* 64 px .* got 192 x 63'),
        ({'digit_height': (8, 40)}, 'digit_height must be 16 .* got 8 40'),
        ({'digit_height': (40, 20)}, 'digit_height must be .* got 40 20'),
        ({'digit_height': (16, 300)}, 'digit_height .* 144 px.* got 16 300'),
    ],
)
def test_spec_out_of_range_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        DigitsSpec(**arguments)


@pytest.fixture(scope='module')
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('data') / 'digits'
    assert write_digits(out, SMALL)
    return out


@pytest.fixture
def few_scans(monkeypatch) -> None:
    """Let what is written hold a few single digits instead of all."""

    def load(split):
        scans = load_scans(split)
        return Scans(scans.images[:30], scans.labels[:30], scans.indices[:30])

    monkeypatch.setattr(make_digits, '_scans', load)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


@pytest.mark.parametrize('split', ['train', 'val'])
def test_coco_file_agrees_with_images_and_maps(written, split):
    coco = COCO(written / f'annotations/instances_{split}.json')
    assert coco.getImgIds() == list(range(1, SMALL.num_scenes(split) + 1))
    assert coco.getAnnIds() == list(range(1, len(coco.anns) + 1))
    categories = coco.loadCats(range(1, 11))
    assert tuple(c['name'] for c in categories) == DIGIT_CLASSES

    for image in coco.imgs.values():
        picture = cv2.imread(str(written / split / image['file_name']))
        assert picture.shape == (80, 96, 3)
        assert (image['height'], image['width']) == (80, 96)
        stem = Path(image['file_name']).stem
        path = written / 'semantic' / split / f'{stem}.png'
        semantic = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert semantic.shape == (80, 96)
        digits_here = coco.imgToAnns[image['id']]
        strokes = np.zeros((80, 96), np.uint8)
        for digit in digits_here:
            mask = coco.annToMask(digit)
            assert digit['area'] == mask.sum()
            assert digit['bbox'] == list(cv2.boundingRect(mask))
            assert digit['iscrowd'] == 0
            assert digit['visible'] >= digits.MIN_VISIBLE
            strokes[mask == 1] = digit['category_id']
        np.testing.assert_array_equal(semantic, strokes)


def test_every_scan_is_a_single_digit_of_its_class(written):
    scans = load_scans()
    seen = []
    for split in ('train', 'val'):
        root = written / 'classification'
        lines = (root / f'meta/{split}.txt').read_text().splitlines()
        for line in lines:
            name, label = line.split()
            folder, file = name.split('/')
            assert DIGIT_CLASSES[int(label)] == folder
            assert scans.labels[int(Path(file).stem)] == int(label)
            assert cv2.imread(str(root / split / name)).shape == (64, 64, 3)
            seen.append(int(Path(file).stem))
    assert sorted(seen) == list(range(1797))


def test_bytes_depend_on_the_seed_and_not_on_the_workers(tmp_path):
    for name, seed, workers in (('a', 3, 1), ('b', 3, 2), ('c', 4, 1)):
        spec = DigitsSpec(20, 2, (64, 80), seed=seed)
        write_digits(tmp_path / name, spec, workers=workers)
    one, two, other = (contents(tmp_path / name) for name in 'abc')
    assert one == two
    assert one.keys() == other.keys()
    assert one['train/000001.jpg'] != other['train/000001.jpg']


TINY = DigitsSpec(2, 1, (64, 64))


@pytest.fixture
def tiny(few_scans, tmp_path) -> Path:
    """A data set of the first arguments, alone in its folder."""
    out = tmp_path / 'tiny' / 'digits'
    assert write_digits(out, TINY)
    return out


def test_other_arguments_need_force(tiny):
    before = contents(tiny)
    other = DigitsSpec(3, 1, (64, 64))
    with pytest.raises(UsageError, match='num_train 2, not 3.*force'):
        write_digits(tiny, other)
    assert contents(tiny) == before
    assert write_digits(tiny, other, force=True)
    assert (tiny / 'train/000003.jpg').exists()
    assert list(tiny.parent.iterdir()) == [tiny]


@pytest.mark.parametrize('force', [False, True])
@pytest.mark.parametrize('meta', [None, '{"name": "other"}', '[', '[]'])
def test_foreign_folders_and_files_are_left_alone(tmp_path, meta, force):
    (tmp_path / 'notes').write_text('mine')
    if meta:
        (tmp_path / 'meta.json').write_text(meta)
    before = contents(tmp_path)
    for out in (tmp_path, tmp_path / 'notes'):
        with pytest.raises(UsageError, match='not a digits data set'):
            write_digits(out, TINY, force=force)
    assert contents(tmp_path) == before


ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools/dataset_converters/make_digits.py'
FEW = ('--num-train', '2', '--num-val', '1', '--scene-size', '80', '64')

COMMAND = [sys.executable, str(TOOL)]
ENVIRONMENT = os.environ | {'PYTHONPATH': str(ROOT)}


def run(*arguments, command=COMMAND) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=ENVIRONMENT,
        text=True,
        capture_output=True,
        timeout=60,
    )


def test_writes_once_then_says_that_it_is_there(tmp_path):
    out = tmp_path / 'digits'
    first = run('--out', out, *FEW)
    assert first.returncode == 0, first.stderr
    assert (out / 'train/000002.jpg').exists()
    assert first.stdout.strip().endswith('written')

    second = run('--out', out, *FEW)
    assert second.returncode == 0
    assert 'already there' in second.stdout

    other = run('--out', out, *FEW, '--seed', 5)
    assert other.returncode == 2
    assert other.stderr.count('\n') == 1
    assert 'seed 0, not 5' in other.stderr
    assert '--force' in other.stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--digit-height', 20, 500], 'got 20 500'),
        (['--workers', 0], 'must be at least 1, got 0'),
    ],
)
def test_bad_argument_is_named_in_one_line(tmp_path, arguments, message):
    done = run('--out', tmp_path / 'digits', *arguments)
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('sent', 'workers', 'code'),
    [(signal.SIGINT, '1', 130), (signal.SIGTERM, '2', 143)],
)
def test_interrupt_leaves_nothing_behind(tmp_path, sent, workers, code):
    out = tmp_path / 'data/digits'
    # A shell that runs the tests in the background has SIGINT ignored.
    process = subprocess.Popen(
        [*COMMAND, '--num-train=999999', '--workers', workers, '--out', out],
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob('data/*/new/train/*.jpg')):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(sent)
        process.wait(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert not list(out.parent.iterdir())
