"""Findings about annotations in the layout of Pascal VOC."""

import os

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

from anchorformer_mm.datasets.checks.data_sets import check_datasets

OBJECT = """<object><name>{name}</name><bndbox>
<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>
</bndbox></object>"""
SIZE = '<size><width>40</width><height>24</height></size>'
CLASSES = ('cat', 'dog')


def box(name, x1=3, y1=4, x2=13, y2=12):
    return OBJECT.format(name=name, x1=x1, y1=y1, x2=x2, y2=y2)


@pytest.fixture
def check(tmp_path):
    """Write annotations, some of them as told; return what is found."""
    for name in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (tmp_path / name).mkdir(parents=True)
    for name in 'ab':
        Image.new('RGB', (40, 24)).save(tmp_path / f'JPEGImages/{name}.jpg')

    def check(*objects, size=SIZE, names='ab', split='train', text=None):
        bodies = dict(a=box('cat'), b=box('dog') + ''.join(objects))
        for name, body in bodies.items():
            xml = f'<annotation>{size}{body}</annotation>'
            (tmp_path / f'Annotations/{name}.xml').write_text(xml)
        if text is not None:
            (tmp_path / 'Annotations/b.xml').write_text(text)
        (tmp_path / 'ImageSets/Main/all.txt').write_text('\n'.join(names))
        dataset = dict(
            type='VOCDataset',
            data_root=str(tmp_path),
            ann_file='ImageSets/Main/all.txt',
            data_prefix=dict(sub_data_root=''),
            metainfo=dict(classes=CLASSES),
        )
        cfg = Config(
            dict(
                default_scope='mmdet',
                model=dict(bbox_head=dict(num_classes=2)),
                **{f'{split}_dataloader': dict(dataset=dataset)},
            )
        )
        return check_datasets(cfg, [split]).findings

    return check


def kinds(findings):
    return [finding.kind for finding in findings]


def test_a_sound_folder_gives_nothing(check):
    assert check() == []
    assert check(size='') == []


@pytest.mark.parametrize(
    ('item', 'kind'),
    [
        (box('dog', x2=1), 'box-invalid'),
        (box('dog', x1=50, x2=60), 'box-outside'),
        (box('dog', x2=60), 'box-partly-outside'),
        (box('dog', x1='nan'), 'annotation-entry'),
        (box(''), 'annotation-entry'),
        (box('cow'), 'category-unused'),
        (box(' dog '), 'category-unused'),
        (box('dog'), 'box-twice'),
        (box('dog', x1='9' * 400), 'annotation-entry'),
    ],
)
def test_objects_that_are_wrong_are_told_with_their_file(check, item, kind):
    (finding,) = check(item)
    assert finding.kind == kind
    file = 'all.txt' if kind == 'category-unused' else 'b.xml'
    assert finding.file.endswith(file)


def test_mmdet_passes_over_names_with_spaces(check, tmp_path):
    # Why they are told.
    check(box('\n dog'))
    dataset = DATASETS.build(
        dict(
            type='mmdet.VOCDataset',
            data_root=str(tmp_path),
            ann_file='ImageSets/Main/all.txt',
            data_prefix=dict(sub_data_root=''),
            metainfo=dict(classes=CLASSES),
        )
    )
    assert [len(dataset[i]['instances']) for i in (0, 1)] == [1, 1]


def test_what_is_no_file_is_told_and_not_read(check, tmp_path):
    check()
    path = tmp_path / 'Annotations/c.xml'
    os.mkfifo(path)
    Image.new('RGB', (40, 24)).save(tmp_path / 'JPEGImages/c.jpg')
    (finding,) = check(names='abc')
    assert finding.kind == 'annotation-file'
    assert finding.file == str(path)
    assert 'is no regular file' in str(finding)
    assert kinds(check(names=['a', 'b', 'c' * 300])) == [
        'annotation-file',
        'image-unreadable',
    ]


@pytest.mark.parametrize(
    ('split', 'level'), [('train', 'warning'), ('val', 'error')]
)
def test_boxes_without_area_count_in_an_evaluation(check, split, level):
    (finding,) = check(box('dog', x2=3), split=split)
    assert (finding.kind, finding.level) == ('box-without-area', level)


def test_sizes_that_differ_from_the_image_are_told(check):
    wrong = SIZE.replace('40', '44')
    assert kinds(check(size=wrong)) == ['image-size'] * 2
    assert kinds(check(size=SIZE.replace('40', 'x'))) == [
        'annotation-file',
        'annotation-file',
        'set-empty',
        'class-empty',
    ]


@pytest.mark.parametrize('text', ['', '<a/>', '<annotation>'])
def test_a_file_that_is_no_annotation_is_told(check, text):
    found = check(text=text)
    assert kinds(found) == ['annotation-file', 'class-empty']
    assert found[0].file.endswith('b.xml')


def test_lists_are_checked_against_the_files(check):
    assert kinds(check(names='aba')) == ['image-twice']
    assert kinds(check(names='abc')) == ['annotation-file', 'image-missing']
    assert 'set-empty' in kinds(check(names=''))
    assert kinds(check(names='a')) == ['class-empty']
