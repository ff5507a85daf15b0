"""The command that checks the data of a config."""

import json
from pathlib import Path

import pytest
from PIL import Image

from anchorformer_mm.datasets import DIGIT_CLASSES

TOOL = 'check_dataset.py'
ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/picodet_anchorformer_t_digits.py'
VAL = Path('data/digits/annotations/instances_val.json')


@pytest.fixture(autouse=True)
def _data(tmp_path, monkeypatch):
    """A few images of 192 px with ten boxes each, one of each digit."""
    monkeypatch.chdir(tmp_path)
    box = dict(bbox=[5, 6, 20, 30], area=600, iscrowd=0)
    categories = [dict(id=i, name=n) for i, n in enumerate(DIGIT_CLASSES)]
    VAL.parent.mkdir(parents=True)
    for split, count in (('train', 8), ('val', 4)):
        images, annotations = [], []
        folder = Path('data/digits', split)
        folder.mkdir()
        for n in range(1, count + 1):
            Image.new('RGB', (192, 192)).save(folder / f'{n}.jpg')
            image = dict(id=n, file_name=f'{n}.jpg', width=192, height=192)
            images.append(image)
            for i in range(10):
                entry = dict(id=10 * n + i, image_id=n, category_id=i)
                annotations.append(entry | box)
        content = dict(images=images, annotations=annotations)
        path = VAL.with_name(f'instances_{split}.json')
        path.write_text(json.dumps(content | dict(categories=categories)))


def test_sound_data_ends_in_status_zero(run_tool):
    status, out, _ = run_tool(TOOL, str(CONFIG), '--workers', '2')
    assert status == 0
    assert out.splitlines()[-1] == '0 errors, 0 warnings'


def test_faults_are_listed_and_errors_end_in_status_one(run_tool):
    for number in (2, 3):
        Path(f'data/digits/val/{number}.jpg').write_bytes(b'none')
    content = json.loads(VAL.read_text())
    content['annotations'][0]['bbox'] = [180, 0, 20, 30]
    VAL.write_text(json.dumps(content))
    args = [TOOL, str(CONFIG), '--workers', '0', '--splits', 'val']
    status, out, _ = run_tool(*args, '--limit', '1')
    assert status == 1
    error, warning, summary = out.splitlines()[-3:]
    assert error.startswith('error: val: entries on which the pipeline fails')
    assert 'and 1 more' in error
    assert warning.startswith('warning: val: boxes that reach out')
    assert summary == '1 errors, 1 warnings'


def test_classes_in_place_of_names_are_checked_too(run_tool):
    # As pure-Python configs have them.
    Path('config.py').write_text(
        'from mmdet.datasets import CocoDataset\n'
        'from mmdet.datasets.transforms import LoadAnnotations\n'
        'from mmdet.datasets.transforms import PackDetInputs\n'
        'from mmcv.transforms import LoadImageFromFile\n'
        'pipeline = [dict(type=LoadImageFromFile),\n'
        '    dict(type=LoadAnnotations, with_bbox=True),\n'
        '    dict(type=PackDetInputs)]\n'
        'model = dict(bbox_head=dict(num_classes=7))\n'
        'train_dataloader = dict(dataset=dict(type=CocoDataset,\n'
        "    ann_file='data/digits/annotations/instances_val.json',\n"
        "    data_prefix=dict(img='data/digits/val/'),\n"
        f'    metainfo=dict(classes={DIGIT_CLASSES}), pipeline=pipeline))\n'
    )
    status, out, _ = run_tool(TOOL, 'config.py', '--workers', '0')
    assert status == 1
    assert 'num_classes=7, the data has 10 classes' in out


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('--seconds', '-1'), '--seconds must be >= 0, got -1'),
        (('--limit', '0'), '--limit must be >= 1, got 0'),
        (('--cfg-options', 'val_dataloader=None', '--splits', 'val'), 'val'),
        (('--cfg-options', 'val_dataloader.dataset.ann_file=x'), 'missing'),
    ],
)
def test_what_cannot_run_ends_in_status_two(run_tool, args, message):
    status, _, errors = run_tool(TOOL, str(CONFIG), *args)
    assert status == 2
    assert any(message in line for line in errors)
