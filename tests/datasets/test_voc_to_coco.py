"""COCO annotations made of those of Pascal VOC."""

import json
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmdet.datasets import CocoDataset, VOCDataset
from PIL import Image
from PIL.ExifTags import Base

from anchorformer_mm.datasets.voc_files import VOCImage, VOCObject, read_split
from anchorformer_mm.datasets.voc_to_coco import coco_annotations, convert_voc
from anchorformer_mm.utils.errors import UsageError

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')
SIZE = (64, 48)


def voc_object(name, corners, difficult=0):
    box = ''.join(
        f'<{n}>{v}</{n}>' for n, v in zip(CORNERS, corners, strict=True)
    )
    return (
        f'<object><name>{escape(name)}</name><difficult>{difficult}'
        f'</difficult><bndbox>{box}</bndbox></object>'
    )


def voc_xml(*objects, size=SIZE):
    width, height = size
    return (
        f'<annotation><size><width>{width}</width><height>{height}</height>'
        f'<depth>3</depth></size>{"".join(objects)}</annotation>'
    )


CAT = voc_object('cat', (1, 2, 30, 40))
DOG = voc_object('dog', (5, 6, 64, 48), difficult=1)


@pytest.fixture
def voc(tmp_path):
    """Write lists of annotations, each with a black image."""
    root = tmp_path / 'voc'

    def write(suffix='.jpg', **splits):
        for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for split, annotations in splits.items():
            ids = [f'{split}_{i}' for i in range(len(annotations))]
            lines = ''.join(f'{name}\n' for name in ids)
            (root / f'ImageSets/Main/{split}.txt').write_text(lines)
            for name, text in zip(ids, annotations, strict=True):
                (root / f'Annotations/{name}.xml').write_text(text)
                image = Image.new('RGB', SIZE)
                image.save(root / f'JPEGImages/{name}{suffix}')
        return root

    return write


def boxes(coco):
    names = {c['id']: c['name'] for c in coco['categories']}
    return [
        (names[a['category_id']], a['bbox'], a['iscrowd'])
        for a in coco['annotations']
    ]


def refusal(*args, **kwargs):
    with pytest.raises(UsageError) as error:
        convert_voc(*args, **kwargs)
    return str(error.value)


@pytest.mark.smoke
def test_coco_dataset_loads_what_voc_dataset_does(voc, tmp_path):
    root = voc(train=[voc_xml(CAT, DOG), voc_xml(), voc_xml(DOG)])
    classes = ('dog', 'cat')
    out = tmp_path / 'new/coco'
    written, warnings = convert_voc(root, out, ['train'], classes=classes)
    assert warnings == []
    assert [p.name for p in out.iterdir()] == ['train.json']
    content = json.loads((out / 'train.json').read_text())
    assert content == written[out / 'train.json']
    common = dict(metainfo=dict(classes=classes), test_mode=True, pipeline=[])
    ours = CocoDataset(
        ann_file=str(out / 'train.json'),
        data_prefix=dict(img=str(root / 'JPEGImages')),
        **common,
    )
    theirs = VOCDataset(
        data_root=str(root),
        ann_file='ImageSets/Main/train.txt',
        data_prefix=dict(sub_data_root=''),
        **common,
    )
    assert len(ours) == len(theirs) == 3
    keys = ('img_path', 'height', 'width', 'instances')
    for i in range(3):
        a, b = (d.get_data_info(i) for d in (ours, theirs))
        assert [a[k] for k in keys] == [b[k] for k in keys]
    assert [len(ours.get_data_info(i)['instances']) for i in range(3)] == [
        2,
        0,
        1,
    ]


def test_all_classes_are_those_of_all_splits_by_name(voc, tmp_path):
    root = voc(train=[voc_xml(DOG)], val=[voc_xml(CAT)])
    written, _ = convert_voc(root, tmp_path, ['train', 'val'])
    for content in written.values():
        names = [(c['id'], c['name']) for c in content['categories']]
        assert names == [(1, 'cat'), (2, 'dog')]


def test_coordinates_count_from_the_first_pixel(voc, tmp_path):
    root = voc(train=[voc_xml(voc_object('cat', (1, 2.5, 30, 40)))])
    for first, box in ((0, [1, 2.5, 29, 37.5]), (1, [0, 1.5, 29, 37.5])):
        written, warnings = convert_voc(
            root, tmp_path / str(first), ['train'], first_pixel=first
        )
        (content,) = written.values()
        assert boxes(content) == [('cat', box, 0)]
        assert content['annotations'][0]['area'] == 29 * 37.5
        assert warnings == []


def test_difficult_objects_are_ignored_unless_kept(voc, tmp_path):
    root = voc(train=[voc_xml(CAT, DOG)])
    for keep, crowd in ((False, [0, 1]), (True, [0, 0])):
        written, _ = convert_voc(
            root, tmp_path / str(keep), ['train'], keep_difficult=keep
        )
        (content,) = written.values()
        assert [crowd for *_, crowd in boxes(content)] == crowd


@pytest.mark.parametrize('size', [(0, 0), (64, 0), ('', ''), None])
def test_a_size_that_is_not_told_is_that_of_the_turned_image(voc, size):
    text = '<annotation/>' if size is None else voc_xml(size=size)
    root = voc(train=[text], suffix='.PNG')
    path = root / 'JPEGImages/train_0.PNG'
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    Image.new('RGB', SIZE).save(path, exif=exif)
    (image,) = read_split(root, 'train')
    assert image == VOCImage(
        'train_0.PNG', 48, 64, (), root / 'Annotations/train_0.xml'
    )


def test_lists_may_have_repetitions_blank_lines_and_folders(voc):
    root = voc(train=[voc_xml(CAT)])
    for folder, suffix in (('Annotations', 'xml'), ('JPEGImages', 'jpg')):
        (root / folder / 'a').mkdir()
        file = root / folder / f'train_0.{suffix}'
        file.rename(root / folder / f'a/b.c.{suffix}')
    lines = '\ufeffa/b.c \r\n\r\na/b.c\r\n'.encode()
    (root / 'ImageSets/Main/train.txt').write_bytes(lines)
    (image,) = read_split(root, 'train')
    assert image.file_name == 'a/b.c.jpg'


def test_what_is_left_out_or_odd_is_counted_and_named(voc, tmp_path):
    odd = [
        voc_object('cat', (3, 3, 3, 9)),
        voc_object('cat', (9, 3, 3, 9)),
        voc_object('cat', (65, 3, 80, 9)),
        voc_object('cat', (0, 3, 20, 9)),
        voc_object('cat', (1, 3, 66, 9)),
        DOG,
        DOG,
    ]
    root = voc(train=[voc_xml(CAT), voc_xml(CAT, *odd)])
    written, warnings = convert_voc(
        root, tmp_path, ['train'], classes=['cow', 'cat']
    )
    file = 'train_1.xml'
    assert warnings == [
        "no object of class 'cow'; found: cat, dog",
        f'train: boxes less than a pixel wide or high, left out: 2, in {file}',
        f'train: boxes outside the image, left out: 1, in {file}',
        'train: boxes that start outside the image, kept; do the files count '
        f'from 0 (--first-pixel 0)?: 1, in {file}',
        f'train: boxes that end outside the image, kept: 1, in {file}',
        "train: objects of class 'dog', which was not asked for, left out: "
        f'2, in {file}',
    ]
    (content,) = written.values()
    assert [box for _, box, _ in boxes(content)] == [
        [0, 1, 29, 38],
        [0, 1, 29, 38],
        [-1, 2, 20, 6],
        [0, 2, 65, 6],
    ]
    assert [a['id'] for a in content['annotations']] == [1, 2, 3, 4]
    assert [a['image_id'] for a in content['annotations']] == [1, 2, 2, 2]


SIDE = st.integers(-5, 25)


@given(st.lists(st.tuples(*[SIDE] * 4)), st.sampled_from([0, 1]))
def test_boxes_are_those_that_coco_dataset_would_not_pass_over(corners, first):
    objects = tuple(VOCObject('cat', c, False) for c in corners)
    image = VOCImage('a.jpg', 20, 16, objects, Path('a.xml'))
    coco, notes = coco_annotations([image], ['cat'], first)
    left_out = sum(len(n) for kind, n in notes.items() if 'left out' in kind)
    assert len(coco['annotations']) + left_out == len(corners)
    whole = [
        (x1 - first, y1 - first, x2 - x1, y2 - y1)
        for x1, y1, x2, y2 in corners
    ]
    dataset = CocoDataset(
        lazy_init=True,
        data_prefix=dict(img=''),
        metainfo=dict(classes=['cat']),
    )
    dataset.cat_ids, dataset.cat2label = [1], {1: 0}
    parsed = dataset.parse_data_info(
        dict(
            raw_img_info=dict(coco['images'][0], img_id=1),
            raw_ann_info=[
                dict(bbox=box, area=box[2] * box[3], category_id=1)
                for box in whole
            ],
        )
    )
    kept = [(x, y, x + w, y + h) for _, (x, y, w, h), _ in boxes(coco)]
    assert kept == [tuple(i['bbox']) for i in parsed['instances']]


LAUGHS = (
    '<!DOCTYPE annotation [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
    '<annotation><object><name>&b;</name></object></annotation>'
)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('<annotation><size>', 'is not well-formed XML (no element found'),
        ('', 'is not well-formed XML (no element found'),
        ("<?xml version='1.0' encoding='no'?><a/>", 'is not well-formed XML'),
        (LAUGHS, 'has a document type, which no annotation needs'),
        ('<html/>', 'must hold <annotation>, got <html>'),
        (voc_xml('<object/>'), 'has an object without a name'),
        (
            voc_xml('<object><name>cat</name></object>'),
            'must have a number as object/bndbox/xmin, got None',
        ),
        (
            voc_xml(voc_object('cat', (1, 2, 'nan', 4))),
            "must have a number as object/bndbox/xmax, got 'nan'",
        ),
        (
            voc_xml(voc_object('cat', (1, 2, 3, 4), difficult='yes')),
            "must have a number as object/difficult, got 'yes'",
        ),
        (
            voc_xml(size=('x', 5)),
            "must have a number as annotation/size/width, got 'x'",
        ),
    ],
)
def test_a_bad_annotation_is_named_and_nothing_is_written(
    voc, tmp_path, text, message
):
    root = voc(train=[voc_xml(CAT)], val=[text, voc_xml(CAT)])
    said = refusal(root, tmp_path / 'out', ['train', 'val'])
    start = '1 of 2 images of val cannot be used: '
    assert said.startswith(f'{start}{root}/Annotations/val_0.xml {message}')
    assert not (tmp_path / 'out').exists()


def test_missing_files_are_named_together(voc, tmp_path):
    root = voc(train=[voc_xml(CAT)] * 3 + [voc_xml(CAT, size=(0, 0))])
    (root / 'Annotations/train_0.xml').unlink()
    (root / 'JPEGImages/train_2.jpg').unlink()
    (root / 'JPEGImages/train_3.jpg').write_bytes(b'no image')
    assert refusal(root, tmp_path, ['train']) == (
        '3 of 4 images of train cannot be used: '
        f'{root}/Annotations/train_0.xml does not exist, '
        f'{root}/JPEGImages/train_2.jpg does not exist, '
        f'{root}/Annotations/train_3.xml has no size, and '
        f'{root}/JPEGImages/train_3.jpg does not decode'
    )


def test_lists_that_are_not_there_empty_or_no_text_are_refused(voc, tmp_path):
    root = voc(train=[voc_xml(CAT)], val=[])
    main = root / 'ImageSets/Main'
    (main / 'odd.txt').write_bytes(b'\xff\xfe\xfd')
    for split, message in (
        ('test', 'does not exist; lists there: odd, train, val'),
        ('val', 'lists no image'),
        ('odd', 'must be text in UTF-8'),
    ):
        said = refusal(root, tmp_path, ['train', split])
        assert said == f'{main}/{split}.txt {message}'
    assert 'lists there: none' in refusal(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(splits=[]), r'splits must be different names, .* got \[\]'),
        (dict(splits=['train', 'train']), 'splits must be different names'),
        (dict(classes=['a', '']), r"classes must .* got \['a', ''\]"),
        (dict(first_pixel=2), 'first_pixel must be 0 or 1, got 2'),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        convert_voc(tmp_path, tmp_path, **arguments)


def test_without_any_object_classes_must_be_named(voc, tmp_path):
    root = voc(train=[voc_xml()])
    assert 'no object in any' in refusal(root, tmp_path, ['train'])
    written, warnings = convert_voc(root, tmp_path, ['train'], classes=['cat'])
    assert warnings == ["no object of class 'cat'; found: none"]
    assert len(written[tmp_path / 'train.json']['images']) == 1


def test_files_are_replaced_when_asked_and_all_or_none(
    voc, tmp_path, monkeypatch
):
    root = voc(train=[voc_xml(CAT)], val=[voc_xml(DOG)])
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'val.json').write_text('old')
    splits = ['train', 'val']
    said = refusal(root, out, splits)
    assert said == f'{out}/val.json exist; --overwrite replaces them'
    write = Path.write_text

    def full_disk(path, text):
        if 'val' in path.name:
            raise OSError('no space left')
        return write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'write_text', full_disk)
        with pytest.raises(OSError, match='no space left'):
            convert_voc(root, out, splits, overwrite=True)
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [
        ('val.json', 'old')
    ]
    convert_voc(root, out, splits, overwrite=True)
    names = sorted(p.name for p in out.iterdir())
    assert names == ['train.json', 'val.json']
    assert 'dog' in (out / 'val.json').read_text()
