"""The command that makes COCO files of what labelling tools write."""

import json
import shutil
from pathlib import Path

import pytest
from mmdet.datasets import CocoDataset
from PIL import Image
from pycocotools.coco import COCO

TOOL = 'dataset_converters/to_coco.py'
# Of images of 40 x 20 px: xywh, class.
BOXES = [([4.0, 2.0, 20.0, 10.0], 'cat'), ([10.0, 5.0, 30.0, 15.0], 'dog')]


def write(path, text=''):
    path = Path('in put', path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


def image(path, colour=0, size=(40, 20)):
    write(path)
    Image.new('RGB', size, (colour, 9, 9)).save(Path('in put', path))


def yolo(stem, split, labels='{split}/labels', images='{split}/images'):
    image(f'{images.format(split=split)}/{stem}.JPG', hash(stem) % 256)
    rows = [
        f'{int(name == "dog")} {(x + w / 2) / 40} {(y + h / 2) / 20} '
        f'{w / 40} {h / 20}'
        for (x, y, w, h), name in BOXES
    ]
    write(f'{labels.format(split=split)}/{stem}.txt', '\n'.join(rows) + '\n')


def yolo_roboflow():
    places = dict(train='../train/images', val='../valid/images')
    write('data.yaml', dict(names=['cat', 'dog']) | places)
    yolo('a', 'train')
    yolo('ä b', 'valid')


def yolo_ultralytics():
    places = dict(path='/elsewhere', train='images/train', val='images/val')
    write('data.yaml', dict(names={0: 'cat', 1: 'dog'}) | places)
    for stem, split in (('a', 'train'), ('ä b', 'val')):
        yolo(stem, split, 'labels/{split}', 'images/{split}')


def yolo_listed():
    lists = dict(train='train.txt', val='val.txt')
    write('data.yaml', dict(names=['cat', 'dog']) | lists)
    for stem, split in (('a', 'train'), ('ä b', 'val')):
        yolo(stem, '.', 'x', 'x')
        write(f'{split}.txt', f'./x/{stem}.JPG\n')


def yolo_without_yaml():
    write('obj.names', 'cat\ndog\n')
    yolo('a', 'train', '{split}', '{split}')
    yolo('ä b', 'validation', '{split}', '{split}')


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


def voc_side_by_side():
    for split in ('train', 'val'):
        image(f'{split}/0001.jpg', ord(split[0]))
        voc_xml(f'{split}/0001.xml', f'C:\\data\\{split}\\0001.jpg')


def voc_of_renamed_images():
    for split in ('train', 'val'):
        image(f'pictures/{split}/{split} 1.png', ord(split[0]))
        voc_xml(f'{split}/x.xml', f'..\\pictures\\{split}\\{split} 1.jpg')


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


def coco_of_text_ids():
    coco(text_ids=True)


@pytest.fixture
def convert(tmp_path, monkeypatch, run_tool):
    monkeypatch.chdir(tmp_path)

    def call(*args):
        return run_tool(TOOL, 'in put', '--out', 'ö/out', *args)

    return call


FORMATS = [
    yolo_roboflow,
    yolo_ultralytics,
    yolo_listed,
    yolo_without_yaml,
    voc_in_trees,
    voc_side_by_side,
    voc_of_renamed_images,
    labelme,
    coco,
    coco_of_text_ids,
]


@pytest.mark.parametrize('make', FORMATS)
def test_every_format_gives_the_boxes_of_its_splits(convert, make):
    make()
    status, printed, errors = convert()
    assert status == 0, (printed, errors)
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
        assert [c['name'] for c in content.dataset['categories']] == [
            'cat',
            'dog',
        ]
    assert not Path('ö/out/test.json').exists()


def test_a_project_of_paddledetection_keeps_its_lists(convert):
    write('label_list.txt', 'owl\ndog\ncat\n')
    for split, folder in (('trainval', 'one'), ('val', 'two'), ('', 'left')):
        image(f'images/{folder}/0.jpg', len(folder))
        voc_xml(f'annotations/{folder}/0.xml', '0.jpg')
        if split:
            pair = f'./images/{folder}/0.jpg annotations/{folder}/0.xml'
            write(f'{split}.txt', f'{pair}\n')
    status, printed, errors = convert()
    assert status == 0 and 'in no list of a split (1)' in printed, errors
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
    assert convert()[0] == 0
    content = COCO('ö/out/train.json')
    assert content.anns[1]['bbox'] == [10, 10, 20, 10]
    assert content.anns[1]['area'] == 100
    assert content.annToMask(content.anns[1]).sum() == pytest.approx(100, 0.2)


def test_equal_images_and_copies_share_a_split(convert):
    write('classes.txt', 'cat\n')
    names = [f'{n}_jpg.rf.{k}' for n in range(5) for k in ('ab1', 'cd2')]
    names += [f'{k}{n}' for n in range(5) for k in ('one', 'two')]
    for number, name in enumerate(names):
        copy = name.startswith(('one', 'two'))
        image(f'{name}.png', 100 + int(name[3:]) if copy else number)
        write(f'{name}.txt', '0 0.5 0.5 0.5 0.5\n')
    splits = []
    for seed in '00123':
        assert convert('--seed', seed, '--overwrite')[0] == 0
        splits.append(
            [
                {Path(i['file_name']).stem for i in COCO(path).imgs.values()}
                for path in ('ö/out/train.json', 'ö/out/val.json')
            ]
        )
        train, val = splits[-1]
        assert (len(train), len(val)) == (16, 4)
        for key in ('.rf.', 'one', 'two'):
            a, b = (
                {n.rpartition('.rf.')[0] or n[3:] for n in s if key in n}
                for s in (train, val)
            )
            assert not a & b
    assert splits[0] == splits[1]
    assert any(s != splits[0] for s in splits)


def missing():
    Path('in put/JPEGImages/x.png').unlink()


def broken():
    path = Path('in put/JPEGImages/x.png')
    path.write_bytes(path.read_bytes()[:60])


def empty():
    Path('in put/JPEGImages/x.png').write_bytes(b'')


def no_xml():
    write('Annotations/x.xml', '<annotation>')


def unlisted():
    write('ImageSets/Main/train.txt', 'a\n')


def boxed(*box):
    def spoil():
        voc_xml('Annotations/x.xml', 'x', boxes=[(box, 'cat')])

    return spoil


@pytest.mark.parametrize(
    ('spoil', 'what', 'told'),
    [
        (missing, 'images', 'not there (1): x of Annotations/x.xml'),
        (broken, 'images', 'broken (1): JPEGImages/x.png'),
        (empty, 'images', 'broken (1): JPEGImages/x.png'),
        (no_xml, 'files', 'broken (1): Annotations/x.xml'),
        (unlisted, 'images', 'in no list of a split (1): Annotations/x.xml'),
        (boxed(9, 9, 0, 5), 'objects', 'cat in Annotations/x.xml'),
        (boxed(50, 9, 9, 5), 'objects', 'cat in Annotations/x.xml'),
        (boxed(9, 9, float('nan'), 5), 'objects', 'cat in Annotations/x.xml'),
        (boxed(9, 9, 0.5, 5), 'objects', 'cat in Annotations/x.xml'),
        (boxed(9, 9, 50, 5), 'boxes cut', 'cat in Annotations/x.xml'),
    ],
)
def test_what_is_left_out_is_told(convert, spoil, what, told):
    voc_in_trees()
    image('JPEGImages/x.png', 77)
    voc_xml('Annotations/x.xml', 'x.png')
    write('ImageSets/Main/train.txt', 'a\nx\n')
    spoil()
    status, printed, _ = convert()
    assert status == 0
    (line,) = [s for s in printed.splitlines() if s.startswith(what)]
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
    status, printed, _ = convert()
    assert status == 0
    for text in ('a.txt:3', 'a.txt:4, train/labels/a.txt:5', 'lost.txt'):
        assert text in printed
    assert len(COCO('ö/out/train.json').anns) == 2
    assert len(COCO('ö/out/train.json').imgs) == 2


def test_classes_and_crowds_are_as_asked(convert):
    coco(iscrowd=1)
    assert convert('--classes', 'dog')[0] == 0
    content = COCO('ö/out/train.json')
    assert [(a['category_id'], a['iscrowd']) for a in content.anns.values()]
    assert content.anns[1]['iscrowd'] == 1
    assert len(content.anns) == 1
    assert convert('--overwrite', '--keep-difficult')[0] == 0
    content = COCO('ö/out/train.json')
    assert [a['iscrowd'] for a in content.anns.values()] == [0, 0]


def test_the_first_pixel_of_voc_is_seen_or_told(convert):
    image('train/a.png')
    image('val/b.png', 1)
    boxes = [([0, 0, 9, 9], 'cat')]
    for path in ('train/a', 'val/b'):
        voc_xml(f'{path}.xml', 'x', first=0, boxes=boxes)
    assert convert()[0] == 0
    assert COCO('ö/out/train.json').anns[1]['bbox'] == [0, 0, 9, 9]
    assert convert('--overwrite', '--first-pixel', '1')[0] == 0
    assert COCO('ö/out/train.json').anns[1]['bbox'] == [0, 0, 8, 8]


def nothing():
    shutil.rmtree('in put')
    write('a.txt')


def two_formats():
    voc_xml('a.xml', 'a')


def one_image():
    shutil.rmtree('in put')
    write('classes.txt', 'cat\n')
    image('a.png')
    write('a.txt', '0 0.5 0.5 0.5 0.5\n')


@pytest.mark.parametrize(
    ('spoil', 'args', 'message'),
    [
        (nothing, [], 'no annotations'),
        (two_formats, [], '--format'),
        (one_image, [], 'cannot be split'),
        (lambda: None, ['--split', '1.5'], '--split must'),
        (lambda: None, ['--classes', 'owl'], 'no object'),
        (lambda: shutil.rmtree('in put'), [], 'SOURCE must be a folder'),
    ],
)
def test_faults_are_one_line_and_nothing_is_written(
    convert, spoil, args, message
):
    yolo_roboflow()
    spoil()
    status, _, errors = convert(*args)
    assert status == 2
    assert message in errors[-1]
    assert not Path('ö').exists()


def test_files_are_replaced_on_demand_only(convert):
    coco()
    assert convert()[0] == 0
    status, _, errors = convert()
    assert status == 2
    assert '--overwrite' in errors[-1]
    Path('ö/out/test.json').write_text('of a former source')
    assert convert('--overwrite')[0] == 0
    assert not Path('ö/out/test.json').exists()


def test_files_beside_their_source_are_not_read_again(run_tool, convert):
    labelme()
    for _ in range(2):
        args = ['in put', '--out', 'in put', '--overwrite']
        assert run_tool(TOOL, *args)[0] == 0
    content = json.loads(Path('in put/train.json').read_text())
    assert content['images'][0]['file_name'] == 'train/a.png'
