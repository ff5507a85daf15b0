"""The data check, on small faulty data sets of the three libraries."""

import json
import logging
import os
from pathlib import Path

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
    check_dataset,
    check_runner,
    check_splits,
    report_findings,
)
from anchorformer_mm.utils.errors import UsageError

CLASSES = ('cat', 'dog')
CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')
PIPELINES = dict(
    mmdet=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs'),
    ],
    mmseg=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ],
    mmpretrain=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
)
HEADS = dict(
    mmdet=dict(bbox_head=dict(num_classes=2)),
    mmseg=dict(decode_head=dict(num_classes=2)),
    mmpretrain=dict(head=dict(num_classes=2)),
)


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
    """A COCO file of two images; gives its annotations to be spoilt."""
    for name in 'ab':
        picture(f'data/{name}.jpg')
    if annotations is None:
        annotations = [
            annotation(1, 'cat'),
            annotation(2, 'dog'),
        ]
    content = dict(
        images=[
            dict(id=i, file_name=f'{name}.jpg', width=40, height=30)
            for i, name in ((1, 'a'), (2, 'b'))
        ],
        annotations=annotations,
        categories=[dict(id=i, name=name) for i, name in enumerate(names)],
    )
    Path('data/coco.json').write_text(json.dumps(content))
    return dict(
        type='CocoDataset',
        data_root='data/',
        data_prefix=dict(img=''),
        ann_file='coco.json',
        metainfo=dict(classes=CLASSES),
        **options,
    )


def annotation(number, name, image=1, box=(2, 2, 10, 8), **keys):
    square = [[2, 2, 12, 2, 12, 10, 2, 10]]
    return (
        dict(
            id=number,
            image_id=image,
            category_id=CLASSES.index(name),
            bbox=list(box),
            area=80,
            iscrowd=0,
            segmentation=square,
        )
        | keys
    )


def voc(*objects, suffix='.jpg', **options):
    """Two images of VOC, the first with objects: name, box, if difficult."""
    for name in 'ab':
        picture(f'data/JPEGImages/{name}{suffix}')
        inner = ''.join(
            f'<object><name>{n}</name><difficult>{d}</difficult><bndbox>'
            + ''.join(
                f'<{c}>{v}</{c}>' for c, v in zip(CORNERS, b, strict=True)
            )
            + '</bndbox></object>'
            for n, b, d in (objects if name == 'a' else ())
        )
        path = Path(f'data/Annotations/{name}.xml')
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            '<annotation><size><width>40</width><height>30</height></size>'
            f'{inner}</annotation>'
        )
    Path('data/train.txt').write_text('a\nb\n')
    return dict(
        type='VOCDataset',
        data_root='data/',
        data_prefix=dict(sub_data_root=''),
        ann_file='train.txt',
        metainfo=dict(classes=CLASSES),
        **options,
    )


def maps(*ids_of_maps, **options):
    """Images of mmseg with the ids of their maps."""
    for number, ids in enumerate(ids_of_maps):
        picture(f'data/img/{number}.jpg')
        label_map(f'data/map/{number}.png', *ids)
    return (
        dict(
            type='BaseSegDataset',
            data_root='data/',
            data_prefix=dict(img_path='img', seg_map_path='map'),
            metainfo=dict(classes=CLASSES),
        )
        | options
    )


def labels(lines='a.png 0\nb.png 1\n', **options):
    for name in 'ab':
        picture(f'data/{name}.png')
    Path('data/list.txt').write_text(lines)
    return (
        dict(
            type='CustomDataset',
            data_root='data/',
            ann_file='list.txt',
            metainfo=dict(classes=CLASSES),
        )
        | options
    )


def check(
    scope, dataset, split='train', *, metric=None, seconds=None, **model
):
    """Findings about a data set, as ``severity: text``."""
    init_default_scope(scope)
    dataset.setdefault('pipeline', PIPELINES[scope])
    cfg = Config(
        {
            'model': HEADS[scope] | model,
            f'{split}_dataloader': dict(dataset=dataset),
        }
    )

    def build(split):
        built = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        return built, Evaluator(metric).metrics if metric else []

    findings = check_splits(cfg, [split], build, seconds)
    return [f'{f.severity}: {f}' for f in findings]


def only(findings, *words):
    """The one finding has all the words."""
    assert len(findings) == 1, findings
    for word in words:
        assert word in findings[0]


@pytest.mark.parametrize(
    ('scope', 'make'),
    [
        ('mmdet', coco),
        ('mmdet', lambda: voc(('cat', (3, 3, 9, 9), 0), ('dog', (9,) * 4, 0))),
        ('mmseg', lambda: maps((0, 1), (0, 255))),
        ('mmpretrain', labels),
    ],
    ids=['coco', 'voc', 'maps', 'labels'],
)
@pytest.mark.parametrize('wrap', ['none', 'repeat', 'concat', 'balanced'])
def test_sound_data_has_no_findings_in_any_wrapper(scope, make, wrap):
    dataset = make()
    if dataset['type'] == 'VOCDataset':
        dataset = voc(('cat', (3, 3, 9, 9), 0), ('dog', (5, 5, 9, 9), 0))
    dataset['pipeline'] = PIPELINES[scope]
    if wrap == 'repeat':
        dataset = dict(type='RepeatDataset', times=2, dataset=dataset)
    elif wrap == 'concat':
        dataset = dict(type='ConcatDataset', datasets=[dataset, dataset])
    elif wrap == 'balanced':
        if scope == 'mmseg':
            pytest.skip('has no get_cat_ids')
        dataset = dict(
            type='ClassBalancedDataset', oversample_thr=0.1, dataset=dataset
        )
    init_default_scope(scope)
    cfg = Config(dict(model=HEADS[scope]))
    for seconds in (None, 60):
        built = DATASETS.build(dataset)
        findings = check_dataset(built, cfg, 'train', seconds)
        assert list(map(str, findings)) == []


@pytest.mark.parametrize(
    ('keys', 'words'),
    [
        (dict(box=(2, 2, 0, 8)), ['warning', 'objects left out', '1 of 2']),
        (dict(box=(50, 2, 9, 8)), ['warning', 'objects left out', '1 of 2']),
        (dict(ignore=1), ['warning', 'objects left out']),
        (
            dict(box=(30, 2, 20, 8)),
            ['warning', 'a.jpg, object 1', 'reach out'],
        ),
    ],
)
def test_boxes_of_coco(keys, words):
    content = [
        annotation(1, 'cat'),
        annotation(3, 'dog', 2),
        annotation(2, 'dog', **keys),
    ]
    if 'reach' not in words[-1]:
        words[-1] = words[-1].replace('1 of 2', '1 of 3')
    only(check('mmdet', coco(content)), *words)


@pytest.mark.parametrize(
    ('box', 'words'),
    [
        ((9, 9, 9, 12), ['warning', 'without area', 'a.jpg, object 2']),
        ((60, 3, 70, 12), ['warning', 'reach out', 'a.jpg, object 2']),
    ],
)
def test_boxes_of_voc(box, words):
    good = [('cat', (3, 3, 9, 9), 0), ('dog', (3, 3, 9, 9), 0)]
    only(check('mmdet', voc(*good, ('cat', box, 0))), *words)


class Own(BaseDataset):
    """A data set as users write them."""

    def load_data_list(self):
        picture('data/own.png')
        item = dict(bbox=[1, 2, 9, 9], bbox_label=0, ignore_flag=0)
        return [
            dict(
                img_path='data/own.png',
                height=30,
                width=40,
                instances=[item, item | dict(bbox_label=1), item | self.fault],
            )
        ]


@pytest.mark.parametrize(
    ('fault', 'words'),
    [
        (dict(bbox=[1, 2, float('nan'), 9]), ['error', 'not finite']),
        (dict(bbox_label=2), ['error', 'no class', '2 of 2']),
        (dict(bbox=[5, 2, 5, 9]), ['warning', 'without area']),
    ],
)
def test_a_class_of_the_users_is_checked(fault, words):
    Own.fault = fault
    findings = check('mmdet', dict(type=Own, metainfo=dict(classes=CLASSES)))
    only(findings, 'data/own.png, object 2', *words)


class Bare:
    """A data set without annotations to look at."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index:
            raise ValueError('line 7 is cut off')
        return dict()


def test_a_bare_data_set_has_its_items_read():
    (finding,) = check_dataset(Bare(), Config(), 'train')
    assert finding.severity == ERROR
    assert 'line 7 is cut off' in str(finding)


@pytest.mark.parametrize(
    'segmentation',
    [
        [],
        [[]],
        [2, 2, 12, 2, 12, 10],
        [[2, 2, 12, 2]],
        dict(counts='x'),
    ],
)
@pytest.mark.parametrize('place', ['train', 'metric'])
def test_masks_that_cannot_be_loaded(segmentation, place):
    bad = annotation(2, 'dog', 2, segmentation=segmentation)
    dataset = coco([annotation(1, 'cat'), bad])
    if place == 'train':
        dataset['pipeline'] = [
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        ]
        findings = check('mmdet', dataset)
        words = 'b.jpg, object 0'
    else:
        metric = dict(
            type='CocoMetric', metric='segm', ann_file='data/coco.json'
        )
        findings = check('mmdet', dataset, 'val', metric=metric)
        words = 'annotation 2 of b.jpg'
    found = [f for f in findings if 'without a mask' in f]
    only(found, 'error', words)


@pytest.mark.parametrize(
    ('ids', 'words'),
    [
        (('0', '1'), ['error', "annotation '0' of a.jpg", 'pycocotools']),
        ((0, 1), ['warning', 'annotation 0 of a.jpg', 'missed']),
    ],
)
def test_ids_that_the_evaluation_cannot_take(ids, words):
    content = [annotation(ids[0], 'cat'), annotation(ids[1], 'dog', 2)]
    metric = dict(type='CocoMetric', ann_file='data/coco.json')
    only(check('mmdet', coco(content), 'val', metric=metric), *words)
    # They matter to no training.
    assert check('mmdet', coco(content)) == []


def test_what_a_metric_does_not_know():
    dataset = coco([annotation(1, 'cat'), annotation(2, 'dog', 2)])
    content = json.loads(Path('data/coco.json').read_text())
    content['images'].pop()
    entry = content['annotations'].pop(0)
    content['annotations'] = [entry]
    del entry['iscrowd']
    Path('metric.json').write_text(json.dumps(content))
    metric = dict(type='CocoMetric', ann_file='metric.json')
    findings = check('mmdet', dataset, 'val', metric=metric)
    assert len(findings) == 2
    assert any('does not know: 1, of the ids 2' in f for f in findings)
    assert any('without iscrowd: annotation 1' in f for f in findings)


@pytest.mark.parametrize('key', ['iscrowd', 'difficult'])
def test_all_objects_ignored(key):
    if key == 'iscrowd':
        content = [annotation(1, 'cat', iscrowd=1)]
        content.append(annotation(2, 'dog', iscrowd=1))
        dataset = coco(content)
    else:
        box = (3, 3, 9, 9)
        dataset = voc(('cat', box, 1), ('dog', box, 1))
    only(check('mmdet', dataset), 'error', 'all objects', '2 objects')


def test_all_objects_dropped_by_ignore():
    findings = check('mmdet', coco([annotation(1, 'cat', ignore=1)]))
    assert any('error: train: classes without' in f for f in findings)
    assert any('objects left out: 1 of 1' in f for f in findings)


@pytest.mark.parametrize('filtered', [False, True])
def test_class_names_that_are_nearly_another(filtered):
    options = dict(filter_cfg=dict(filter_empty_gt=True)) if filtered else {}
    dataset = voc(('Cat', (3, 3, 9, 9), 0), ('Dog', (3, 3, 9, 9), 0))
    findings = check('mmdet', dataset | options)
    (empty,) = [f for f in findings if 'classes without an example' in f]
    assert empty.startswith('error')
    assert "'cat' (there is 'Cat')" in empty
    assert any('unusable' in f for f in findings) == filtered


def test_categories_that_coco_files_do_not_have():
    findings = check('mmdet', coco(names=('cat', 'Dog')))
    (unknown,) = [f for f in findings if 'do not know' in f]
    assert unknown.startswith('error')
    assert "'dog' (there is 'Dog')" in unknown


def test_the_order_of_coco_files_counts():
    metric = dict(type='CocoMetric', ann_file='data/coco.json')
    dataset = coco(names=('dog', 'cat'))
    findings = check('mmdet', dataset, 'val', metric=metric)
    only(findings, 'error', 'dog, cat, not cat, dog')


def test_objects_and_images_that_are_left_out():
    content = [annotation(1, 'cat'), annotation(2, 'dog', 2)]
    dataset = coco(content) | dict(metainfo=dict(classes=('cat',)))
    model = dict(bbox_head=dict(num_classes=1))
    only(check('mmdet', dataset, **model), 'warning', '1 of 1 other categor')
    dataset = voc(
        *(('cat', (3, 3, 9, 9), 0), ('dog', (3, 3, 9, 9), 0)),
        filter_cfg=dict(filter_empty_gt=True),
    )
    only(check('mmdet', dataset), 'warning', 'images left out: 1 of 2')


@pytest.mark.parametrize('scope', ['mmseg', 'mmpretrain'])
def test_images_of_other_suffixes_are_left_out(scope):
    dataset = maps((0, 1)) if scope == 'mmseg' else labels()
    folder = 'data/img' if scope == 'mmseg' else 'data'
    picture('c.jpg')
    os.rename('c.jpg', f'{folder}/c.JPG')
    only(check(scope, dataset), 'warning', f'1 in .JPG of {folder}')


@pytest.mark.parametrize(
    ('spoil', 'words'),
    [
        (lambda p: p.unlink(), ['is not there']),
        (
            lambda p: p.rename(p.with_suffix('.JPG')),
            ['not there; ', '.JPG is'],
        ),
        (lambda p: p.write_bytes(b''), ['has 0 bytes']),
        (lambda p: p.write_bytes(b'text'), ['fails', 'LoadImageFromFile']),
        (lambda p: p.write_bytes(p.read_bytes()[:-40]), ['fails']),
    ],
)
@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_images_that_cannot_be_read(scope, spoil, words):
    dataset, path = {
        'mmdet': (coco, 'data/a.jpg'),
        'mmseg': (lambda: maps((0, 1), (0, 1)), 'data/img/0.jpg'),
        'mmpretrain': (labels, 'data/a.png'),
    }[scope]
    dataset = dataset()
    if scope == 'mmseg':
        Path('data/list.txt').write_text('0\n1\n')
        dataset['ann_file'] = 'list.txt'
    spoil(Path(path))
    findings = [f for f in check(scope, dataset) if path in f]
    assert findings[0].startswith('error')
    for word in words:
        assert word in findings[0]


def test_maps_beside_their_images_are_not_left_out():
    dataset = maps((0, 1))
    os.rename('data/map/0.png', 'data/img/0.png')
    dataset['data_prefix'] = dict(img_path='img', seg_map_path='img')
    assert check('mmseg', dataset) == []


def test_backslashes_in_names():
    dataset = coco()
    path = Path('data/coco.json')
    path.write_text(path.read_text().replace('a.jpg', 'x\\\\a.jpg'))
    only(check('mmdet', dataset), 'error', 'write / for')


def test_a_size_that_is_not_annotated():
    dataset = coco()
    picture('data/a.jpg', (30, 40))
    only(check('mmdet', dataset), 'warning', 'a.jpg (30x40 px, not 40x30 px)')


@pytest.mark.parametrize(
    ('ids', 'options', 'words'),
    [
        ([(0, 255), (0, 255)], {}, ["'dog'; maps have the ids 0, 255"]),
        (
            [(0, 1), (1, 0)],
            dict(reduce_zero_label=True),
            ["'dog'", 'the ids 0, 255 (ignored) after reduce_zero_label'],
        ),
    ],
)
def test_classes_without_a_pixel(ids, options, words):
    findings = check('mmseg', maps(*ids, **options))
    only(findings, 'error', 'without an example', *words)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_ids_that_are_no_class(split):
    dataset = maps((0, 1), (0, 1, 2))
    severity = 'error' if split == 'train' else 'warning'
    words = ['1.png'[:1], 'has 2', 'ignore_index']
    only(check('mmseg', dataset, split), severity, *words)
    # Void as the last id is ignored where this is said.
    if split == 'train':
        head = dict(num_classes=2, ignore_index=2)
        assert check('mmseg', dataset, decode_head=head) == []


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
    dataset = maps((0, 1), (0, 1))
    Path('data/list.txt').write_text('0\n1\n')
    spoil('data/map/0.png')
    found = check('mmseg', dataset | dict(ann_file='list.txt'))
    only([f for f in found if 'ids that' not in f], *words)


def test_padding_that_the_loss_cannot_take():
    head = dict(num_classes=2, ignore_index=11)
    pre = dict(size=(64, 64), seg_pad_val=255)
    model = dict(decode_head=head, data_preprocessor=pre)
    findings = check('mmseg', maps((0, 1)), **model)
    only(findings, 'error', '40x30 px, padded to 64x64 px with 255')
    model['data_preprocessor'] = pre | dict(seg_pad_val=11)
    assert check('mmseg', maps((0, 1)), **model) == []


@pytest.mark.parametrize(
    ('lines', 'words'),
    [
        ('a.png 0\nb.png 2\n', ['error', 'b.png: 2 of 2']),
        ('a.png 0\nb.png 0\n', ['error', "'dog'"]),
        ('a.png 0\nb.png 1\na.png 1\n', ['warning', 'more than once']),
    ],
)
def test_labels_of_images(lines, words):
    findings = check('mmpretrain', labels(lines))
    assert any(all(word in f for word in words) for f in findings), findings


@pytest.mark.parametrize(
    ('scope', 'make', 'head'),
    [
        ('mmdet', coco, 'bbox_head'),
        ('mmseg', lambda: maps((0, 1)), 'auxiliary_head'),
        ('mmpretrain', labels, 'head'),
    ],
)
def test_heads_of_other_classes(scope, make, head):
    model = {head: [dict(num_classes=3)]}
    if scope == 'mmseg':
        model = {head: [dict(num_classes=3), dict(num_classes=2)]}
    only(
        check(scope, make(), **model), 'error', f'{head}[0] has num_classes=3'
    )


def test_weights_of_other_classes():
    loss = dict(type='CrossEntropyLoss', class_weight=[1.0] * 11)
    head = dict(num_classes=2, loss_decode=loss)
    findings = check('mmseg', maps((0, 1)), decode_head=head)
    only(findings, 'error', 'loss_decode has 11 for num_classes=2')


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_classes_as_a_text(scope):
    dataset = coco() if scope == 'mmdet' else maps((0, 1))
    findings = check(scope, dataset | dict(metainfo=dict(classes=('cat'))))
    (text,) = [f for f in findings if 'is a text' in f]
    assert text.startswith('error')
    assert "('cat',)" in text


def test_equal_names_where_one_output_is_written():
    dataset = maps((0, 1), (0, 1))
    os.makedirs('data/img/x')
    os.makedirs('data/map/x')
    os.rename('data/img/1.jpg', 'data/img/x/0.jpg')
    os.rename('data/map/1.png', 'data/map/x/0.png')
    metric = dict(type='IoUMetric', output_dir='out')
    only(check('mmseg', dataset, 'val', metric=metric), 'warning', '0.jpg')
    metric.pop('output_dir')
    assert check('mmseg', dataset, 'val', metric=metric) == []


def test_train_and_val_are_compared():
    init_default_scope('mmpretrain')
    pipeline = PIPELINES['mmpretrain']
    one = labels(pipeline=pipeline)
    os.rename('data', 'first')
    two = labels(pipeline=pipeline, metainfo=dict(classes=('cat', 'Dog')))
    one['data_root'] = 'first'
    cfg = Config(
        dict(
            train_dataloader=dict(dataset=one),
            val_dataloader=dict(dataset=two),
        )
    )

    def build(split):
        return DATASETS.build(cfg[f'{split}_dataloader'].dataset), ()

    findings = check_splits(cfg, ['train', 'val'], build)
    assert {f.severity for f in findings} == {WARNING}
    assert {f.split for f in findings} == {'val'}
    messages = sorted(f.message for f in findings)
    assert messages == [
        'another data_root than in training',
        'other classes than in training',
    ]
    cfg.val_dataloader = cfg.train_dataloader
    (finding,) = check_splits(cfg, ['train', 'val'], build)
    assert set(finding.cases) == {'first/a.png', 'first/b.png'}


def test_a_part_is_looked_at_and_named():
    dataset = labels('a.png 0\n' * 200 + 'b.png 1\n' * 200)
    (found,) = [
        f for f in check('mmpretrain', dataset, seconds=0) if 'part' in f
    ]
    assert found.startswith('warning')
    assert '1 of 400 entries, 1 with their images' in found


def test_random_transforms_leave_no_trace():
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    dataset = maps((0, 1), (0, 1))
    dataset['pipeline'] = [
        *PIPELINES['mmseg'][:2],
        dict(type='RandomCrop', crop_size=(8, 8)),
        dict(type='RandomFlip', prob=0.5),
        PIPELINES['mmseg'][2],
    ]
    assert check('mmseg', dataset) == []
    assert np.random.rand() == expected


def test_a_set_that_cannot_be_built_is_an_error():
    only(check('mmdet', coco(colour='red')), 'error', 'colour')


def test_the_sets_of_a_runner_are_checked():
    class Loop:
        def __init__(self, dataset):
            self.dataset = dataset

    class Runner:
        cfg = Config(dict(model=dict(head=dict(num_classes=2))))

    init_default_scope('mmpretrain')
    config = labels('a.png 0\nb.png 5\n', pipeline=PIPELINES['mmpretrain'])
    Runner.train_dataloader = Loop(DATASETS.build(config))
    findings = check_runner(Runner(), ['train'])
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
