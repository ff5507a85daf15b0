"""Findings about COCO annotations, one file made for each kind."""

import json
import math
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from PIL import Image

from anchorformer_mm.datasets.checks.data_sets import check_datasets
from anchorformer_mm.datasets.checks.findings import KINDS
from anchorformer_mm.utils.errors import UsageError

CLASSES = ('cat', 'dog')


def content():
    """Two images with two boxes each."""
    return dict(
        images=[
            dict(id=i, file_name=f'{i}.jpg', width=40, height=24)
            for i in (1, 2)
        ],
        annotations=[
            dict(
                id=number,
                image_id=1 + number // 3,
                category_id=1 + number % 2,
                bbox=[1 + number, 3, 10, 8],
                area=80,
                iscrowd=0,
            )
            for number in (1, 2, 3, 4)
        ],
        categories=[dict(id=i, name=n) for i, n in enumerate(CLASSES, 1)],
    )


@pytest.fixture
def check(tmp_path):
    """Write annotations beside their images; return what is found."""
    for i in (1, 2):
        Image.new('RGB', (40, 24)).save(tmp_path / f'{i}.jpg')

    def check(annotations, split='train', num_classes=2, **dataset):
        file = tmp_path / 'a.json'
        if not isinstance(annotations, (str, bytes)):
            annotations = json.dumps(annotations)
        if isinstance(annotations, str):
            annotations = annotations.encode()
        file.write_bytes(annotations)
        dataset = dict(
            type='CocoDataset',
            data_root=str(tmp_path),
            ann_file='a.json',
            data_prefix=dict(img=''),
            metainfo=dict(classes=CLASSES),
            pipeline=[dict(type='LoadImageFromFile')],
        ) | dict(dataset)
        cfg = Config(
            dict(
                default_scope='mmdet',
                model=dict(bbox_head=dict(num_classes=num_classes)),
                **{f'{split}_dataloader': dict(dataset=dataset)},
            )
        )
        return check_datasets(cfg, [split]).findings

    return check


def kinds(findings):
    return [finding.kind for finding in findings]


@pytest.mark.smoke
@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_a_sound_file_gives_nothing(check, split):
    assert check(content(), split) == []


def deep(text):
    return '[' * 100_000 + text + ']' * 100_000


@pytest.mark.parametrize(
    'text',
    [
        *('', '{', '[]', '{"images": []}', '\0'),
        pytest.param(deep(''), id='deep'),
        pytest.param(json.dumps(content())[:-1] + f', "info": {deep("")}}}'),
        pytest.param('[' + '9' * 5000 + ']', id='long number'),
        *(json.dumps(content()).encode(e) for e in ('utf-8-sig', 'utf-16')),
    ],
)
def test_a_file_that_is_no_coco_is_told(check, text):
    (finding,) = check(text)
    assert finding.kind == 'annotation-file'
    assert finding.file.endswith('a.json')


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_pycocotools_reads_no_other_encoding(tmp_path, encoding):
    # Why they are refused.
    from pycocotools.coco import COCO

    file = tmp_path / 'a.json'
    file.write_text(json.dumps(content()), encoding=encoding)
    with pytest.raises(ValueError, match='BOM|decode'):
        COCO(str(file))


def test_only_a_test_set_may_lack_annotations(check):
    bare = content()
    del bare['annotations']
    assert kinds(check(bare, 'train')) == ['annotation-file']
    assert check(bare, 'test') == []


def test_empty_lists_are_told(check):
    empty = dict(content(), annotations=[])
    assert kinds(check(empty)) == ['set-empty', 'class-empty']
    assert 'set-empty' in kinds(check(dict(content(), images=[])))


def entry_findings(check, entries, index, **changes):
    changed = content()
    changed[entries][index].update(changes)
    return check(changed)


@pytest.mark.parametrize(
    ('changes', 'kind'),
    [
        (dict(id=1), 'image-id-twice'),
        (dict(file_name='1.jpg'), 'image-twice'),
        (dict(file_name='./1.jpg'), 'image-twice'),
        (dict(file_name=''), 'image-entry'),
        (dict(file_name='a\0b.jpg'), 'image-entry'),
        (dict(file_name='\ud800.jpg'), 'image-entry'),
        (dict(file_name='a' * 999), 'image-unreadable'),
        (dict(width=10**400), 'image-entry'),
        (dict(width=math.inf), 'image-entry'),
        (dict(width=None), 'image-entry'),
        (dict(height=-4), 'image-entry'),
        (dict(id=[2]), 'image-entry'),
        (dict(width=41), 'image-size'),
        (dict(file_name='3.jpg'), 'image-missing'),
    ],
)
def test_entries_of_images_that_are_wrong_are_told(check, changes, kind):
    found = entry_findings(check, 'images', 1, **changes)
    assert kind in kinds(found)
    assert found[0].level == 'error'


@pytest.mark.parametrize(
    ('changes', 'kind'),
    [
        (dict(id=1), 'annotation-id-twice'),
        (dict(image_id=7), 'annotation-image'),
        (dict(category_id=7), 'annotation-category'),
        (dict(area=0), 'annotation-area'),
        (dict(area=math.nan), 'annotation-area'),
        (dict(image_id=None), 'annotation-entry'),
        (dict(bbox=[1, 2, math.nan, 4]), 'box-invalid'),
        (dict(bbox=[9, 9, -3, 4]), 'box-invalid'),
        (dict(bbox=[]), 'box-invalid'),
        (dict(bbox=[10**400, 2, 3, 4]), 'box-invalid'),
        (dict(bbox=[10**300, 2, 10**300, 4]), 'box-outside'),
        (dict(bbox=[5, 2, 3, 4], area=10**400), 'annotation-area'),
        (dict(bbox=[60, 3, 5, 5]), 'box-outside'),
        (dict(bbox=[30, 3, 20, 5]), 'box-partly-outside'),
        (dict(bbox=[30, 3, 0.5, 5]), 'box-tiny'),
    ],
)
def test_annotations_that_are_wrong_are_told_alone(check, changes, kind):
    (finding,) = entry_findings(check, 'annotations', 3, **changes)
    assert finding.kind == kind
    assert finding.level == KINDS[kind].level
    assert finding.file.endswith('a.json')


@pytest.mark.parametrize('changes', [{}, dict(iscrowd=None)])
@pytest.mark.parametrize('split', ['val', 'test'])
def test_the_metric_needs_to_know_of_crowds(check, changes, split):
    lacking = content()
    del lacking['annotations'][1]['iscrowd']
    lacking['annotations'][1].update(changes)
    (finding,) = check(lacking, split)
    assert (finding.kind, finding.level) == ('annotation-crowd', 'error')
    # mmdet takes it for none in training.
    assert check(lacking, 'train') == []


def test_the_same_box_twice_is_a_warning(check):
    twice = content()
    twice['annotations'].append(dict(twice['annotations'][0], id=9))
    (finding,) = check(twice)
    assert (finding.kind, finding.level) == ('box-twice', 'warning')
    assert 'annotation 9 (1.jpg) has the box [2, 3, 10, 8]' in str(finding)
    # Of another class, or on another image, it is another box.
    twice['annotations'][-1]['category_id'] = 1
    assert check(twice) == []
    twice['annotations'][-1].update(category_id=2, image_id=2)
    assert check(twice) == []


@pytest.mark.parametrize(
    ('area', 'expected'), [(99, []), (100, ['annotation-area'])]
)
def test_an_area_beyond_the_box_is_a_warning(check, area, expected):
    # 10x8 px, or 11x9 px where both borders count.
    found = entry_findings(check, 'annotations', 0, area=area)
    assert kinds(found) == expected
    assert all(finding.level == 'warning' for finding in found)


@pytest.mark.parametrize('name', [['cat'], None, 5, ''])
def test_names_of_categories_are_texts(check, name):
    found = entry_findings(check, 'categories', 0, name=name)
    assert found[0].kind == 'annotation-file'
    assert f': categories[0] has the name {name!r}' in str(found[0])


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([10**400, -(10**300), -1, 0, 10**300, 0.5]),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from(['a\0b', '\ud800', '/dev/zero', '.', '..', 'x' * 5000]),
    st.lists(st.sampled_from([1, 'a', None, [], 10**400]), max_size=5),
    st.just({'a': []}),
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    entries=st.sampled_from(['images', 'annotations', 'categories']),
    keys=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    value=ODD,
    split=st.sampled_from(['train', 'val', 'test']),
)
def test_any_value_anywhere_ends_in_findings(
    check, entries, keys, value, split
):
    changed = content()
    for key in keys:
        names = sorted(changed[entries][0])
        changed[entries][0][names[key % len(names)]] = value
    for finding in check(changed, split):
        # Can be printed, in one line.
        assert str(finding).isprintable()


def test_values_of_any_length_and_depth_are_told_in_short(check):
    # As deep as the reader of JSON lets it be.
    nested = []
    for _ in range(sys.getrecursionlimit() - 200):
        nested = [nested]
    for value in (nested, 'x' * 100_000, [5] * 100_000):
        found = entry_findings(check, 'annotations', 0, bbox=value)
        assert kinds(found) == ['box-invalid']
        assert len(str(found[0])) < 500


@pytest.mark.parametrize('entries', ['images', 'annotations', 'categories'])
def test_entries_that_lack_something_are_told(check, entries):
    lacking = content()
    del lacking[entries][0]['id']
    kind = {'images': 'image-entry', 'annotations': 'annotation-entry'}
    found = check(lacking)
    assert found[0].kind == kind.get(entries, 'annotation-file')
    assert f'{entries}[0] has no id' in str(found[0])
    assert kinds(check(dict(content(), **{entries: [5]})))


@pytest.mark.parametrize(
    ('split', 'level'), [('train', 'warning'), ('val', 'error')]
)
@pytest.mark.parametrize(
    ('changes', 'kind'),
    [
        (dict(id=0), 'annotation-id-zero'),
        (dict(bbox=[1, 2, 0, 4]), 'box-without-area'),
    ],
)
def test_what_only_the_metric_minds_is_a_warning_for_training(
    check, split, level, changes, kind
):
    changed = content()
    changed['annotations'][0].update(changes)
    (finding,) = check(changed, split)
    assert (finding.kind, finding.level) == (kind, level)


def test_the_metric_takes_a_match_with_the_id_zero_for_none():
    # Why it is told at all.
    import numpy as np
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def precision(first_id):
        truth = COCO()
        truth.dataset = content()
        for number, entry in enumerate(truth.dataset['annotations']):
            entry.update(id=first_id + number, image_id=1 + number % 2)
            entry['bbox'] = [2 + 9 * (number // 2), 3, 8, 10]
        truth.createIndex()
        found = np.array(
            [
                [a['image_id'], *a['bbox'], 0.9, a['category_id']]
                for a in truth.dataset['annotations']
            ]
        )
        run = COCOeval(truth, truth.loadRes(found), 'bbox')
        run.evaluate()
        run.accumulate()
        run.summarize()
        return run.stats[0]

    assert precision(1) == pytest.approx(1.0)
    assert precision(0) < 0.9


def test_categories_that_metainfo_leaves_out_are_told(check):
    found = check(content(), num_classes=1, metainfo=dict(classes=('dog',)))
    assert kinds(found) == ['category-unused']
    assert "'cat' (2 objects)" in str(found[0])


def test_classes_that_the_file_does_not_have_are_told(check):
    found = check(content(), metainfo=dict(classes=('dog', 'cow')))
    assert kinds(found) == ['class-unknown', 'category-unused']
    assert "no category 'cow'" in str(found[0])
    assert "it has 'cat', 'dog'" in str(found[0])


def test_another_order_of_the_classes_is_told(check):
    found = check(content(), metainfo=dict(classes=CLASSES[::-1]))
    assert [(f.kind, f.level) for f in found] == [('class-order', 'error')]


@pytest.mark.parametrize('key', ['id', 'name'])
def test_categories_that_are_there_twice_are_told(check, key):
    twice = content()
    twice['categories'][1][key] = twice['categories'][0][key]
    assert 'category-twice' in kinds(check(twice))


def test_a_class_without_objects_matters_in_training(check):
    half = content()
    for entry in half['annotations']:
        entry['category_id'] = 1
    assert kinds(check(half)) == ['class-empty']
    assert check(half, 'val') == []


def test_heads_must_be_for_as_many_classes(check):
    (finding,) = check(content(), num_classes=80)
    assert finding.kind == 'classes-head'
    assert 'model.bbox_head has num_classes=80' in str(finding)


def test_the_same_image_in_training_and_evaluation_is_told(tmp_path, check):
    assert check(content()) == []
    dataset = dict(
        type='CocoDataset',
        data_root=str(tmp_path),
        ann_file='a.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=CLASSES),
    )
    cfg = Config(
        dict(
            default_scope='mmdet',
            model={},
            **{
                f'{split}_dataloader': dict(dataset=dataset)
                for split in ('train', 'val', 'test')
            },
        )
    )
    report = check_datasets(cfg, ['train', 'val', 'test'])
    assert kinds(report.findings) == ['image-in-training'] * 2
    assert report.listed == {'train': 2, 'val and test': 2}


def test_the_folder_of_images_must_be_named_as_mmdet_does(check):
    with pytest.raises(UsageError, match='data_prefix of a CocoDataset'):
        check(content(), data_prefix=dict(img_path=''))
