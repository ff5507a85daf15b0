"""The command that makes COCO files of what labelling tools write."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
from mmdet.datasets import CocoDataset
from PIL import Image
from pycocotools.coco import COCO

TOOL = 'dataset_converters/to_coco.py'
# Of images of 40 x 20 px: xywh, class.
BOXES = [([4.0, 2.0, 20.0, 10.0], 'cat'), ([10.0, 5.0, 30.0, 15.0], 'dog')]
ULTRALYTICS = dict(path='/elsewhere', train='images/train', val='images/val')
ULTRALYTICS |= dict(names={0: 'cat', 1: 'dog'})
# What is spoilt.
PNG, XML = 'in put/JPEGImages/x.png', 'Annotations/x.xml'
LIST = 'ImageSets/Main/train.txt'


def write(path, text=''):
    path = Path('in put', path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


def image(path, colour=0, size=(40, 20)):
    write(path)
    Image.new('RGB', size, (colour, 9, 9)).save(Path('in put', path))


def yolo(images, labels, val='val', config=None):
    """A project with or without data.yaml, and with lists of images."""
    if config:
        write('data.yaml', dict(names=['cat', 'dog']) | config)
    else:
        write('obj.names', 'cat\ndog\n')
    for stem, split in (('a', 'train'), ('ä b', val)):
        folder = images.format(split)
        image(f'{folder}/{stem}.JPG', ord(stem[0]))
        rows = [
            f'{int(name == "dog")} {(x + w / 2) / 40} {(y + h / 2) / 20} '
            f'{w / 40} {h / 20}\n'
            for (x, y, w, h), name in BOXES
        ]
        write(f'{labels.format(split)}/{stem}.txt', ''.join(rows))
        write(f'{split}.txt', f'\n./{folder}/{stem}.JPG\n')


def yolo_roboflow():
    places = dict(train='../train/images', val='../valid/images')
    yolo('{}/images', '{}/labels', 'valid', places)


def voc_xml(path, filename, first=1, boxes=BOXES):
    objects = ''.join(
        f'<object><name>{name}</name><bndbox><xmin>{x + first}</xmin>'
        f'<ymin>{y + first}</ymin><xmax>{x + w + first}</xmax>'
        f'<ymax>{y + h + first}</ymax></bndbox></object>'
        for (x, y, w, h), name in boxes
    )
    name = f'<filename>{filename}</filename>'
    write(path, f'<annotation>{name}{objects}</annotation>')


def voc_in_trees():
    for stem, split in (('a', 'train'), ('ä b', 'val')):
        image(f'JPEGImages/{stem}.png', ord(stem[0]))
        voc_xml(f'Annotations/{stem}.xml', f'{stem}.jpg')
        write(f'ImageSets/Main/{split}.txt', f'{stem}\n')


def voc_by_split(picture, path, filename):
    for split in ('train', 'val'):
        image(picture.format(split), ord(split[0]))
        voc_xml(path.format(split), filename.format(split))


def labelme():
    corner = [[24, 2], [4, 12]]
    polygon = [[10, 5], [40, 5], [40, 20], [10, 20]]
    shapes = [
        dict(label='cat', points=corner, shape_type='rectangle'),
        dict(label='dog', points=polygon, shape_type='polygon'),
    ]
    for split in ('train', 'val'):
        image(f'{split}/a.png', ord(split[0]))
        content = dict(shapes=shapes, imagePath='..\\a.png', imageData='x')
        write(f'{split}/a.json', content)


def coco(text_ids=False, **more):
    key = str if text_ids else int
    groups = dict(id=key(0), name='animals', supercategory='none')
    kinds = [groups] + [
        dict(id=key(i), name=name, supercategory='animals')
        for i, name in enumerate(('cat', 'dog'), 1)
    ]
    for split in ('train', 'valid'):
        image(f'{split}/a.jpg', ord(split[0]))
        entry = dict(id=key(0), file_name='a.jpg', width=40, height=20)
        items = [
            dict(id=f'u-{i}' if text_ids else i, image_id=0, bbox=box)
            | dict(category_id=('cat', 'dog').index(name) + 1)
            | dict(segmentation=[], **more)
            for i, (box, name) in enumerate(BOXES)
        ]
        content = dict(images=[entry], annotations=items, categories=kinds)
        write(f'{split}/_annotations.coco.json', content)


@pytest.fixture
def convert(tmp_path, monkeypatch, run_tool):
    monkeypatch.chdir(tmp_path)

    def call(*args, status=0, out='ö/out'):
        """Output, or the last line of the errors."""
        ended, *texts = run_tool(TOOL, 'in put', '--out', out, *args)
        assert ended == status, texts
        return texts[1][-1] if status else texts[0]

    return call


@pytest.mark.parametrize(
    'make',
    [
        yolo_roboflow,
        partial(yolo, 'images/{}', 'labels/{}', 'val', ULTRALYTICS),
        partial(yolo, 'x', 'x', config=dict(train='train.txt', val='val.txt')),
        partial(yolo, '{}', '{}', 'Validation'),
        voc_in_trees,
        partial(voc_by_split, '{}/1.jpg', '{}/1.xml', 'C:\\data\\{}\\1.jpg'),
        partial(voc_by_split, 'x/{0}/{0} 1.png', '{}/y.xml', '..\\{} 1.jpg'),
        labelme,
        coco,
        partial(coco, text_ids=True),
    ],
)
def test_every_format_gives_the_boxes_of_its_splits(convert, make):
    make()
    convert()
    for split in ('train', 'val'):
        dataset = CocoDataset(
            data_root='ö/out',
            data_prefix=dict(img=''),
            ann_file=f'{split}.json',
            metainfo=dict(classes=('cat', 'dog')),
        )
        info = dataset.get_data_info(0)
        assert len(dataset) == 1
        assert Path(info['img_path']).is_file()
        assert (info['width'], info['height']) == (40, 20)
        for (box, name), item in zip(BOXES, info['instances'], strict=True):
            x, y, w, h = box
            assert item['bbox'] == pytest.approx([x, y, x + w, y + h])
            assert item['bbox_label'] == ('cat', 'dog').index(name)
        content = COCO(f'ö/out/{split}.json')
        assert sorted(content.anns) == [1, 2]
        names = [c['name'] for c in content.dataset['categories']]
        assert names == ['cat', 'dog']
    assert not Path('ö/out/test.json').exists()


def test_a_project_of_paddledetection_keeps_its_lists(convert):
    write('label_list.txt', 'owl\ndog\ncat\n')
    for split, folder in (('trainval', 'one'), ('val', 'two'), ('', 'left')):
        image(f'images/{folder}/0.jpg', len(folder))
        voc_xml(f'annotations/{folder}/0.xml', '0.jpg')
        if split:
            pair = f'./images/{folder}/0.jpg annotations/{folder}/0.xml'
            write(f'{split}.txt', f'{pair}\n')
    assert 'in no list of a split (1)' in convert()
    for split, folder in (('train', 'one'), ('val', 'two')):
        content = COCO(f'ö/out/{split}.json').dataset
        names = [c['name'] for c in content['categories']]
        assert names == ['owl', 'dog', 'cat']
        (entry,) = content['images']
        assert entry['file_name'].endswith(f'images/{folder}/0.jpg')


def test_polygons_become_masks(convert):
    write('data.yaml', dict(names=['cat']))
    for i in range(2):
        image(f'{i}.png', i)
        write(f'{i}.txt', '0 0.25 0.5 0.75 0.5 0.75 1\n')
    convert()
    content = COCO('ö/out/train.json')
    assert content.anns[1]['bbox'] == [10, 10, 20, 10]
    assert content.anns[1]['area'] == 100
    assert content.annToMask(content.anns[1]).sum() == pytest.approx(100, 0.2)


def test_equal_images_and_copies_share_a_split(convert):
    write('classes.txt', 'cat\n')
    # Copies of an image by Roboflow, and equal images.
    endings = ('_jpg.rf.ab1', '_jpg.rf.cd2', '-one', '-two')
    names = [f'{n}{end}' for n in range(5) for end in endings]
    for number, name in enumerate(names):
        image(f'{name}.png', 100 + int(name[0]) if '-' in name else number)
        write(f'{name}.txt', '0 0.5 0.5 0.5 0.5\n')
    splits = []
    for seed in '00123':
        convert('--seed', seed, '--overwrite')
        train, val = (
            {Path(i['file_name']).stem for i in COCO(path).imgs.values()}
            for path in ('ö/out/train.json', 'ö/out/val.json')
        )
        assert (len(train), len(val)) == (16, 4)
        assert not {n[:2] for n in train} & {n[:2] for n in val}
        splits.append(val)
    assert splits[0] == splits[1]
    assert any(s != splits[0] for s in splits)


def boxed(*box):
    return partial(voc_xml, XML, 'x', boxes=[(box, 'cat')])


@pytest.mark.parametrize(
    ('spoil', 'what', 'told'),
    [
        (partial(os.unlink, PNG), 'images', f'not there (1): x of {XML}'),
        (partial(os.truncate, PNG, 60), 'images', 'broken (1): JPEGImages/x'),
        (partial(os.truncate, PNG, 0), 'images', 'broken (1): JPEGImages/x'),
        (partial(write, XML, '<annotation>'), 'files', f'broken (1): {XML}'),
        (partial(write, LIST, 'a\n'), 'images', 'in no list of a split (1)'),
        (boxed(9, 9, 0, 5), 'objects', f'cat in {XML}'),
        (boxed(50, 9, 9, 5), 'objects', f'cat in {XML}'),
        (boxed(9, 9, float('nan'), 5), 'objects', f'cat in {XML}'),
        (boxed(9, 9, 0.5, 5), 'objects', f'cat in {XML}'),
        (boxed(9, 9, 50, 5), 'boxes cut', f'cat in {XML}'),
    ],
)
def test_what_is_left_out_is_told(convert, spoil, what, told):
    voc_in_trees()
    image('JPEGImages/x.png', 77)
    voc_xml(XML, 'x.png')
    write(LIST, 'a\nx\n')
    spoil()
    (line,) = [s for s in convert().splitlines() if s.startswith(what)]
    assert told in line
    kept = what in ('objects', 'boxes cut')
    train = COCO('ö/out/train.json')
    assert len(train.imgs) == 1 + kept
    assert len(train.anns) == 2 + (what == 'boxes cut')


def test_rows_without_class_or_box_are_told_with_their_line(convert):
    yolo_roboflow()
    path = Path('in put/train/labels/a.txt')
    good = path.read_text()
    path.write_text(f'{good}7 0.5 0.5 0.5 0.5\n1 0.5\nx 1 1 1 1\n')
    write('train/labels/lost.txt', good)
    image('train/images/empty.png', 50)
    printed = convert()
    for text in ('a.txt:3', 'a.txt:4, train/labels/a.txt:5', 'lost.txt'):
        assert text in printed
    assert len(COCO('ö/out/train.json').anns) == 2
    assert len(COCO('ö/out/train.json').imgs) == 2


def test_classes_and_crowds_are_as_asked(convert):
    coco(iscrowd=1)
    convert('--classes', 'dog')
    (item,) = COCO('ö/out/train.json').anns.values()
    assert (item['category_id'], item['iscrowd']) == (1, 1)
    convert('--overwrite', '--keep-difficult')
    content = COCO('ö/out/train.json')
    assert [a['iscrowd'] for a in content.anns.values()] == [0, 0]


@pytest.mark.parametrize(
    ('args', 'size'), [([], 9), (['--first-pixel', '1'], 8)]
)
def test_the_first_pixel_of_voc_is_seen_or_told(convert, args, size):
    for number, path in enumerate(('train/a', 'val/b')):
        image(f'{path}.png', number)
        voc_xml(f'{path}.xml', 'x', first=0, boxes=[([0, 0, 9, 9], 'cat')])
    convert(*args)
    assert COCO('ö/out/train.json').anns[1]['bbox'] == [0, 0, size, size]


def one_image():
    write('classes.txt', 'cat\n')
    image('a.png')
    write('a.txt', '0 0.5 0.5 0.5 0.5\n')


def two_formats():
    one_image()
    voc_xml('a.xml', 'a')


@pytest.mark.parametrize(
    ('make', 'args', 'message'),
    [
        (partial(image, 'a.png'), [], 'no annotations'),
        (two_formats, [], '--format'),
        (one_image, [], 'cannot be split'),
        (yolo_roboflow, ['--format', 'coco'], 'no annotations of coco'),
        (partial(write, 'data.yaml', 'names: 3'), [], 'data.yaml: names'),
        (partial(write, 'data.yaml', 'names: {a: b}'), [], 'data.yaml: names'),
        (partial(write, 'data.yaml', 'names:'), [], 'data.yaml: names'),
        (yolo_roboflow, ['--split', '1.5'], '--split must'),
        (yolo_roboflow, ['--classes', 'owl'], 'no object'),
        (partial(os.mkdir, 'other'), [], 'SOURCE must be a folder'),
    ],
)
def test_faults_are_one_line_and_nothing_is_written(
    convert, make, args, message
):
    make()
    assert message in convert(*args, status=2)
    assert not Path('ö').exists()


def test_files_are_replaced_on_demand_only(convert):
    coco()
    convert()
    assert '--overwrite' in convert(status=2)
    Path('ö/out/test.json').write_text('of a former source')
    convert('--overwrite')
    assert not Path('ö/out/test.json').exists()


def test_files_beside_their_source_are_not_read_again(convert):
    labelme()
    for _ in range(2):
        convert('--overwrite', out='in put')
    content = json.loads(Path('in put/train.json').read_text())
    assert content['images'][0]['file_name'] == 'train/a.png'
