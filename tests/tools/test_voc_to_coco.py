"""The command that turns VOC files into COCO files."""

import json
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO

TOOL = 'dataset_converters/voc_to_coco.py'
SIZE = '<size><width>40</width><height>30</height></size>'


def write(name, *objects, size=SIZE, suffix='.jpg'):
    for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        Path('voc', folder).mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (40, 30)).save(f'voc/JPEGImages/{name}{suffix}')
    text = ''.join(
        f'<object><name>{label}</name><difficult>{difficult}</difficult>'
        f'<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>'
        f'<ymax>{y2}</ymax></bndbox></object>'
        for label, x1, y1, x2, y2, difficult in objects
    )
    Path(f'voc/Annotations/{name}.xml').write_text(
        f'<annotation>{size}{text}</annotation>'
    )
    with Path('voc/ImageSets/Main/train.txt').open('a') as file:
        file.write(f'{name}\n')


@pytest.fixture
def convert(tmp_path, monkeypatch, run_tool):
    monkeypatch.chdir(tmp_path)

    def call(*args):
        args = ['--out', 'coco', '--splits', 'train', *args]
        return run_tool(TOOL, 'voc', *args)

    return call


def voc_dataset():
    from mmdet.datasets import VOCDataset

    return VOCDataset(
        data_root='voc',
        data_prefix=dict(sub_data_root=''),
        ann_file='ImageSets/Main/train.txt',
        metainfo=dict(classes=('cat', 'dog')),
    )


def test_boxes_are_those_of_mmdet(convert):
    from mmdet.datasets import CocoDataset

    write('a', ('cat', 3, 4, 20, 12, 0), ('dog', 5, 5, 40, 30, 1))
    write('b')
    assert convert()[0] == 0
    coco = CocoDataset(
        ann_file='coco/train.json',
        data_prefix=dict(img='voc/JPEGImages'),
        metainfo=dict(classes=('cat', 'dog')),
    )
    voc = voc_dataset()
    assert len(coco) == len(voc) == 2
    for index in range(2):
        ours, theirs = coco.get_data_info(index), voc.get_data_info(index)
        assert ours['instances'] == theirs['instances']
        assert ours['width'], ours['height'] == (40, 30)


def test_options_and_what_is_left_out(convert):
    cats = [(0, 1.5, 20, 12, 1), (5, 5, 5, 9, 0), (50, 5, 60, 9, 0)]
    objects = [('cat', *cat) for cat in cats]
    write('x', *objects, ('owl', 5, 5, 15, 9, 0), size='', suffix='.PNG')
    args = ['--classes', 'dog', 'cat', '--first-pixel', '0']
    status, _, errors = convert(*args, '--keep-difficult')
    assert status == 0
    for text in ('class dog', '1 objects of the class owl', 'than a pixel'):
        assert any(text in line for line in errors)
    coco = COCO('coco/train.json')
    (image,) = coco.imgs.values()
    assert image['file_name'] == 'x.PNG'
    assert (image['width'], image['height']) == (40, 30)
    (entry,) = coco.anns.values()
    assert entry['id'] == 1
    assert entry['bbox'] == [0, 1.5, 20, 10.5]
    assert (entry['category_id'], entry['iscrowd']) == (2, 0)


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda: Path('voc/JPEGImages/a.jpg').unlink(), 'a.jpg does not'),
        (lambda: Path('voc/Annotations/a.xml').write_text('<a>'), 'a.xml'),
        (lambda: write('b', ('cat', 'x', 1, 2, 3, 0)), 'b.xml'),
    ],
)
def test_faults_are_one_line_and_nothing_is_written(convert, spoil, message):
    write('a', ('cat', 3, 4, 20, 12, 0))
    spoil()
    status, _, errors = convert()
    assert status == 2
    assert message in errors[-1]
    assert not Path('coco').exists()


def test_files_are_replaced_on_demand_only(convert):
    write('a', ('cat', 3, 4, 20, 12, 0))
    assert convert()[0] == 0
    assert convert()[0] == 2
    assert convert('--overwrite')[0] == 0
    assert json.loads(Path('coco/train.json').read_text())['annotations']


def test_voc_files_are_evaluated_by_coco_without_converting(convert):
    import torch
    from mmdet.evaluation import CocoMetric

    write('a', ('cat', 3, 4, 20, 12, 0), ('dog', 5, 5, 40, 30, 0))
    voc = voc_dataset()
    metric = CocoMetric(ann_file=None)
    metric.dataset_meta = voc.metainfo
    info = voc.get_data_info(0)
    found = dict(
        bboxes=torch.tensor([i['bbox'] for i in info['instances']]).float(),
        labels=torch.tensor([i['bbox_label'] for i in info['instances']]),
        scores=torch.ones(2),
    )
    sample = dict(info, ori_shape=(30, 40), pred_instances=found)
    metric.process({}, [sample])
    assert metric.evaluate(1)['coco/bbox_mAP'] == 1
