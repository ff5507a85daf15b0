"""The data check, on small faulty data sets of the three libraries."""

import json
import logging
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from anchorformer_mm.datasets.checks import (
    ERROR,
    WARNING,
    Finding,
    check_runner,
    check_splits,
    report_findings,
)
from anchorformer_mm.utils.errors import UsageError

CLASSES = ('cat', 'dog')
LOAD = dict(type='LoadImageFromFile')
BOXES = dict(type='LoadAnnotations', with_bbox=True)
PIPELINES = dict(
    mmdet=[LOAD, BOXES, dict(type='PackDetInputs')],
    mmseg=[LOAD, dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
    mmpretrain=[LOAD, dict(type='PackInputs')],
)
HEADS = dict(mmdet='bbox_head', mmseg='decode_head', mmpretrain='head')
# Of data sets, where it is not mmdet.
SCOPES = dict(BaseSegDataset='mmseg', CustomDataset='mmpretrain')
ONE, TWO, THREE = (dict(num_classes=number) for number in (1, 2, 3))
METRIC = dict(type='CocoMetric', ann_file='data/coco.json')


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def picture(path, size=(40, 30), mode='RGB'):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 7 if mode == 'L' else (9, 90, 200)).save(path)


def label_map(path, *ids, size=(40, 30)):
    """A map of vertical stripes of the ids."""
    pixels = np.repeat(ids, -(-size[0] // len(ids)))[: size[0]]
    picture(path, size, 'L')
    array = np.tile(pixels, (size[1], 1))
    array = array.astype(np.uint8 if max(ids) < 256 else np.uint16)
    Image.fromarray(array).save(path)


def coco(annotations=None, names=CLASSES, **options):
    """Two images with a cat and a dog, or other annotations."""
    content = dict(
        images=[],
        annotations=annotations or [annotation(1), annotation(2, 'dog', 2)],
        categories=[dict(id=i, name=name) for i, name in enumerate(names)],
    )
    for number, name in enumerate('ab', 1):
        picture(f'data/{name}.jpg')
        image = dict(id=number, file_name=f'{name}.jpg', width=40, height=30)
        content['images'].append(image)
    Path('data/coco.json').write_text(json.dumps(content))
    return dict(
        type='CocoDataset',
        data_root='data/',
        data_prefix=dict(img=''),
        ann_file='coco.json',
        metainfo=dict(classes=CLASSES),
        **options,
    )


def annotation(number, name='cat', image=1, **keys):
    entry = dict(id=number, image_id=image, category_id=CLASSES.index(name))
    entry |= dict(bbox=[2, 2, 10, 8], area=80, iscrowd=0)
    return entry | dict(segmentation=[[2, 2, 12, 2, 12, 10, 2, 10]]) | keys


def voc(*objects, **options):
    """Two images, the first with objects: name, box, if difficult."""
    Path('data/Annotations').mkdir(parents=True)
    Path('data/train.txt').write_text('a\nb\n')
    for name in 'ab':
        picture(f'data/JPEGImages/{name}.jpg')
        text = '<size><width>40</width><height>30</height></size>'
        for label, box, difficult in objects if name == 'a' else ():
            corners = zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True)
            corners = ''.join(f'<{c}>{v}</{c}>' for c, v in corners)
            text += f'<object><name>{label}</name><bndbox>{corners}</bndbox>'
            text += f'<difficult>{difficult}</difficult></object>'
        path = Path(f'data/Annotations/{name}.xml')
        path.write_text(f'<annotation>{text}</annotation>')
    return dict(
        type='VOCDataset',
        data_root='data/',
        data_prefix=dict(sub_data_root=''),
        ann_file='train.txt',
        metainfo=dict(classes=CLASSES),
        **options,
    )


def maps(*ids_of_maps, **options):
    """Images with the ids of their maps."""
    Path('data').mkdir(exist_ok=True)
    names = [f'{number}\n' for number in range(len(ids_of_maps))]
    Path('data/list.txt').write_text(''.join(names))
    for number, ids in enumerate(ids_of_maps):
        picture(f'data/img/{number}.jpg')
        label_map(f'data/map/{number}.png', *ids)
    dataset = dict(
        type='BaseSegDataset',
        data_root='data/',
        data_prefix=dict(img_path='img', seg_map_path='map'),
        metainfo=dict(classes=CLASSES),
    )
    return dataset | options


def labels(lines='a.png 0\nb.png 1\n', **options):
    for name in 'ab':
        picture(f'data/{name}.png')
    Path('data/list.txt').write_text(lines)
    dataset = dict(type='CustomDataset', data_root='data/')
    dataset |= dict(ann_file='list.txt', metainfo=dict(classes=CLASSES))
    return dataset | options


def check(dataset, split='train', *, metric=None, seconds=None, **model):
    """Findings about a data set, as ``severity: text``."""
    scope = SCOPES.get(dataset['type'], 'mmdet')
    init_default_scope(scope)
    dataset.setdefault('pipeline', PIPELINES[scope])
    model = {HEADS[scope]: TWO} | model
    cfg = {'model': model, f'{split}_dataloader': dict(dataset=dataset)}

    def build(split):
        metrics = Evaluator(metric).metrics if metric else []
        return DATASETS.build(dataset), metrics

    findings = check_splits(Config(cfg), [split], build, seconds)
    return [f'{f.severity}: {f}' for f in findings]


def check_built(dataset, seconds=None):
    return check_splits(Config(), ['train'], lambda _: (dataset, ()), seconds)


def only(findings, *words):
    """The one finding has all the words."""
    assert len(findings) == 1, findings
    for word in words:
        assert word in findings[0]


GOOD = (('cat', (3, 3, 9, 9), 0), ('dog', (5, 5, 9, 9), 0))


@pytest.mark.parametrize(
    'make',
    [coco, lambda: voc(*GOOD), lambda: maps((0, 1), (0, 255)), labels],
)
def test_sound_data_has_no_findings_in_any_wrapper(make):
    inner = make()
    assert check(inner) == []
    wrappers = [
        dict(type='RepeatDataset', times=2, dataset=inner),
        dict(type='ConcatDataset', datasets=[inner, inner]),
    ]
    if inner['type'] != 'BaseSegDataset':
        balanced = dict(type='ClassBalancedDataset', oversample_thr=0.1)
        wrappers.append(balanced | dict(dataset=inner))
    for wrapper in wrappers:
        assert check_built(DATASETS.build(wrapper), seconds=60) == []


class Own(BaseDataset):
    """A data set as users write them."""

    def load_data_list(self):
        picture('data/own.png')
        item = dict(bbox=[1, 2, 9, 9], bbox_label=0, ignore_flag=0)
        items = [item, item | dict(bbox_label=1), item | self.fault]
        entry = dict(img_path='data/own.png', height=30, width=40)
        return [entry | dict(instances=items)]


def own(**fault):
    Own.fault = fault
    return dict(type=Own, metainfo=dict(classes=CLASSES))


def coco_with(**fault):
    bad = annotation(2, 'dog', **fault)
    return coco([annotation(1), annotation(3, 'dog', 2), bad])


def with_picture(dataset, path):
    picture(path, (30, 40))
    return dataset


CROWDS = [annotation(1, iscrowd=1), annotation(2, 'dog', iscrowd=1)]
DIFFICULT = [(name, box, 1) for name, box, _ in GOOD]
FLAT, OUTSIDE = ('cat', (9, 9, 9, 12), 0), ('cat', (60, 3, 70, 12), 0)
NO_EMPTY = dict(filter_cfg=dict(filter_empty_gt=True))
FROM_ONE = dict(reduce_zero_label=True)


@pytest.mark.parametrize(
    ('severity', 'make', 'pattern'),
    [
        (WARNING, lambda: coco_with(bbox=(2, 2, 0, 8)), 'left out: 1 of 3'),
        (WARNING, lambda: coco_with(bbox=(50, 2, 9, 8)), 'left out: 1 of 3'),
        (WARNING, lambda: coco_with(ignore=1), 'objects left out: 1 of 3'),
        (WARNING, lambda: coco_with(bbox=(30, 2, 20, 8)), 'reach .*object 1'),
        (WARNING, lambda: voc(*GOOD, OUTSIDE), 'reach out .*a.jpg, object 2'),
        (WARNING, lambda: voc(*GOOD, FLAT), 'without area: .*a.jpg, object 2'),
        (WARNING, lambda: own(bbox=[5, 2, 5, 9]), 'area: .*png, object 2'),
        (ERROR, lambda: own(bbox=[1, 2, math.nan, 9]), 'not finite: .*2'),
        (ERROR, lambda: own(bbox_label=2), 'no class: .*object 2.*: 2 of 2'),
        (ERROR, lambda: coco(CROWDS), 'all objects .*2 objects'),
        (ERROR, lambda: voc(*DIFFICULT), 'all objects .*2 objects'),
        (WARNING, lambda: voc(*GOOD, **NO_EMPTY), 'images left out: 1 of 2'),
        (
            WARNING,
            lambda: with_picture(maps((0, 1)), 'data/img/c.JPG'),
            'left out: 1 in .JPG of data/img',
        ),
        (
            WARNING,
            lambda: with_picture(coco(), 'data/a.jpg'),
            'a.jpg .30x40 px, not 40x30 px',
        ),
        (ERROR, lambda: coco(colour='red'), 'colour'),
        (ERROR, lambda: maps((0, 255)), "'dog'; maps have the ids 0, 255"),
        (ERROR, lambda: maps((0, 1), **FROM_ONE), "'dog'.* 255 .ignored. aft"),
    ],
)
def test_data_with_one_fault(severity, make, pattern):
    (finding,) = check(make())
    assert re.match(f'{severity}: .*{pattern}', finding), finding


class Bare:
    """A data set without annotations to look at."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index:
            raise ValueError('line 7 is cut off')
        return dict()


def test_a_bare_data_set_has_its_items_read():
    (finding,) = check_built(Bare())
    assert finding.severity == ERROR
    assert 'line 7 is cut off' in str(finding)


@pytest.mark.parametrize(
    'segmentation',
    [[], [[]], [2, 2, 12, 2, 12, 10], [[2, 2, 12, 2]], dict(counts='x')],
)
def test_masks_that_cannot_be_loaded(segmentation):
    bad = annotation(2, 'dog', 2, segmentation=segmentation)
    dataset = coco([annotation(1), bad])
    findings = check(dataset, 'val', metric=METRIC | dict(metric='segm'))
    only(findings, 'error', 'without a mask', 'annotation 2 of b.jpg')
    dataset['pipeline'] = [LOAD, BOXES | dict(with_mask=True)]
    findings = check(dataset)
    only([f for f in findings if 'without a mask' in f], 'b.jpg, object 0')


@pytest.mark.parametrize(
    ('ids', 'words'),
    [
        (('0', '1'), ['error', "annotation '0' of a.jpg", 'pycocotools']),
        ((0, 1), ['warning', 'annotation 0 of a.jpg', 'missed']),
    ],
)
def test_ids_that_the_evaluation_cannot_take(ids, words):
    content = [annotation(ids[0]), annotation(ids[1], 'dog', 2)]
    only(check(coco(content), 'val', metric=METRIC), *words)
    # They matter to no training.
    assert check(coco(content)) == []


def test_what_a_metric_does_not_know():
    dataset = coco()
    content = json.loads(Path('data/coco.json').read_text())
    del content['images'][1], content['annotations'][1]
    del content['annotations'][0]['iscrowd']
    Path('metric.json').write_text(json.dumps(content))
    metric = METRIC | dict(ann_file='metric.json')
    crowd, images = check(dataset, 'val', metric=metric)
    assert 'without iscrowd: annotation 1' in crowd
    assert 'does not know: 1, of the ids 2' in images


def test_all_objects_dropped_by_ignore():
    findings = check(coco([annotation(1, ignore=1)]))
    assert any('error: train: classes without' in f for f in findings)
    assert any('objects left out: 1 of 1' in f for f in findings)


@pytest.mark.parametrize('filtered', [False, True])
def test_class_names_that_are_nearly_another(filtered):
    dataset = voc(('Cat', (3, 3, 9, 9), 0), ('Dog', (3, 3, 9, 9), 0))
    findings = check(dataset | (NO_EMPTY if filtered else {}))
    (empty,) = [f for f in findings if 'classes without an example' in f]
    assert empty.startswith('error')
    assert "'cat' (there is 'Cat')" in empty
    assert any('unusable' in f for f in findings) == filtered


def test_categories_that_coco_files_do_not_have():
    findings = check(coco(names=('cat', 'Dog')))
    (unknown,) = [f for f in findings if 'do not know' in f]
    assert unknown.startswith('error')
    assert "'dog' (there is 'Dog')" in unknown


def test_the_order_of_coco_files_counts():
    dataset = coco(names=('dog', 'cat'))
    findings = check(dataset, 'val', metric=METRIC)
    only(findings, 'error', 'dog, cat, not cat, dog')


def test_objects_of_other_classes_are_left_out():
    dataset = coco() | dict(metainfo=dict(classes=('cat',)))
    findings = check(dataset, bbox_head=ONE)
    only(findings, 'warning', 'objects left out: 1 of 2')


@pytest.mark.parametrize(
    ('spoil', 'words'),
    [
        (lambda p: p.unlink(), 'is not there'),
        (lambda p: p.rename(p.with_suffix('.JPG')), '.JPG is'),
        (lambda p: p.write_bytes(b''), 'has 0 bytes'),
        (lambda p: p.write_bytes(b'text'), 'LoadImageFromFile'),
        (lambda p: p.write_bytes(p.read_bytes()[:-40]), 'fails'),
    ],
)
@pytest.mark.parametrize(
    ('make', 'path'),
    [
        (coco, 'data/a.jpg'),
        (lambda: maps((0, 1), ann_file='list.txt'), 'data/img/0.jpg'),
        (labels, 'data/a.png'),
    ],
)
def test_images_that_cannot_be_read(make, path, spoil, words):
    dataset = make()
    spoil(Path(path))
    found = [f for f in check(dataset) if path in f]
    assert found[0].startswith('error')
    assert words in found[0]


def test_maps_beside_their_images_are_not_left_out():
    dataset = maps((0, 1))
    os.rename('data/map/0.png', 'data/img/0.png')
    dataset['data_prefix'] = dict(img_path='img', seg_map_path='img')
    assert check(dataset) == []


def test_backslashes_in_names():
    dataset = coco()
    path = Path('data/coco.json')
    path.write_text(path.read_text().replace('a.jpg', 'x\\\\a.jpg'))
    only(check(dataset), 'error', 'write / for')


@pytest.mark.parametrize(
    ('split', 'severity'), [('train', 'error'), ('val', 'warning')]
)
def test_ids_that_are_no_class(split, severity):
    dataset = maps((0, 1), (0, 1, 2))
    only(check(dataset, split), severity, 'has 2', 'ignore_index')


def test_void_as_the_last_id_is_ignored_where_this_is_said():
    head = TWO | dict(ignore_index=2)
    assert check(maps((0, 1), (0, 2)), decode_head=head) == []


@pytest.mark.parametrize(
    ('spoil', 'words'),
    [
        (lambda p: picture(p), ['error', '(30, 40, 3)']),
        (lambda p: label_map(p, 0, 1, size=(20, 30)), ['error', '(30, 20)']),
        (lambda p: label_map(p, 0, 1, 300), ['error', 'beyond 255']),
        (lambda p: label_map(p, 255), ['warning', 'all is ignored']),
        (lambda p: Path(p).unlink(), ['error', 'is not there']),
    ],
)
def test_label_maps_of_a_wrong_kind(spoil, words):
    dataset = maps((0, 1), (0, 1), ann_file='list.txt')
    spoil('data/map/0.png')
    found = check(dataset)
    only([f for f in found if 'ids that' not in f], *words)


def test_padding_that_the_loss_cannot_take():
    pre = dict(size=(64, 64), seg_pad_val=255)
    model = dict(decode_head=TWO | dict(ignore_index=11))
    model['data_preprocessor'] = pre
    findings = check(maps((0, 1)), **model)
    only(findings, 'error', '40x30 px, padded to 64x64 px with 255')
    pre['seg_pad_val'] = 11
    assert check(maps((0, 1)), **model) == []


@pytest.mark.parametrize(
    ('make', 'model', 'words'),
    [
        (coco, dict(bbox_head=[THREE]), 'bbox_head.0 has num_classes=3'),
        (labels, dict(head=[THREE]), 'head.0 has num_classes=3'),
        (
            lambda: maps((0, 1)),
            dict(auxiliary_head=[THREE]),
            'auxiliary_head.0 has num_classes=3',
        ),
        (
            lambda: maps((0, 1)),
            dict(decode_head=TWO | dict(loss=dict(class_weight=[1.0] * 11))),
            'loss has 11 for num_classes=2',
        ),
    ],
)
def test_heads_of_other_classes(make, model, words):
    only(check(make(), **model), 'error', words)


def test_labels_of_images():
    no_class, empty = check(labels('a.png 0\nb.png 2\n'))[::-1]
    assert 'error' in no_class
    assert 'b.png: 2 of 2' in no_class
    assert "'dog'" in empty


def test_classes_as_a_text():
    dataset = maps((0, 1), metainfo=dict(classes=('cat')))
    (text,) = [f for f in check(dataset) if 'is a text' in f]
    assert text.startswith('error')
    assert "('cat',)" in text


def test_train_and_val_are_compared():
    init_default_scope('mmpretrain')
    pipeline = PIPELINES['mmpretrain']
    one = labels(pipeline=pipeline)
    os.rename('data', 'first')
    two = labels(pipeline=pipeline, metainfo=dict(classes=('cat', 'Dog')))
    one['data_root'] = 'first'
    loaders = [dict(dataset=one), dict(dataset=two)]
    cfg = Config(dict(train_dataloader=loaders[0], val_dataloader=loaders[1]))

    def build(split):
        return DATASETS.build(cfg[f'{split}_dataloader'].dataset), ()

    findings = check_splits(cfg, ['train', 'val'], build)
    assert {f.severity for f in findings} == {WARNING}
    assert {f.split for f in findings} == {'val'}
    classes, root = sorted(map(str, findings), reverse=True)
    assert 'cat, Dog, not cat, dog' in classes
    assert 'data_root' in root
    cfg.val_dataloader = cfg.train_dataloader
    (finding,) = check_splits(cfg, ['train', 'val'], build)
    assert set(finding.cases) == {'first/a.png', 'first/b.png'}


def test_a_part_is_looked_at_and_named():
    dataset = labels('a.png 0\n' * 200 + 'b.png 1\n' * 200)
    findings = check(dataset, seconds=0)
    only(findings, 'warning', '1 of 400 entries, 1 with their images')


def test_random_transforms_leave_no_trace():
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    dataset = maps((0, 1), (0, 1))
    dataset['pipeline'] = list(PIPELINES['mmseg'])
    dataset['pipeline'].insert(2, dict(type='RandomFlip', prob=0.5))
    assert check(dataset) == []
    assert np.random.rand() == expected


def test_the_sets_of_a_runner_are_checked():
    init_default_scope('mmpretrain')
    config = labels('a.png 0\nb.png 5\n', pipeline=PIPELINES['mmpretrain'])
    runner = SimpleNamespace(
        cfg=Config(dict(model=dict(head=dict(num_classes=2)))),
        train_dataloader=SimpleNamespace(dataset=DATASETS.build(config)),
    )
    findings = check_runner(runner, ['train'])
    assert any('b.png: 5 of 2' in str(f) for f in findings)


def test_a_report_warns_and_refuses(caplog):
    finding = Finding(WARNING, 'train', 'odd\x1b', 'mend', ('a.jpg',))
    logger = logging.getLogger('report')
    report_findings([finding], logger)
    assert 'train: odd\\x1b: a.jpg; mend' in caplog.text
    bad = Finding(ERROR, 'val', 'broken', 'mend', tuple('abcdefgh'))
    with pytest.raises(UsageError, match=r'broken \(8\).*and 3 more; mend'):
        report_findings([finding, bad], logger)
    assert 'h; mend' in bad.text(10)
