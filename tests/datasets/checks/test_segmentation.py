"""Findings about label maps, one line each file."""

import os

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from anchorformer_mm.datasets.checks.data_sets import check_datasets


@pytest.fixture
def check(tmp_path):
    """Write label maps beside grey-green images; return what is found."""

    def check(maps, sample=None, split='train', num_classes=3, **dataset):
        for folder in ('images', 'maps'):
            (tmp_path / folder).mkdir(exist_ok=True)
        for index, content in enumerate(maps):
            content = np.broadcast_to(np.uint8(content), (4, 6))
            Image.fromarray(content).save(tmp_path / f'maps/{index}.png')
            Image.new('RGB', (6, 4)).save(tmp_path / f'images/{index}.jpg')
        dataset = dict(
            type='BaseSegDataset',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='images', seg_map_path='maps'),
            metainfo=dict(classes=('sky', 'sea', 'sand')),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations'),
            ],
        ) | dict(dataset)
        cfg = Config(
            dict(
                default_scope='mmseg',
                model=dict(decode_head=dict(num_classes=num_classes)),
                **{f'{split}_dataloader': dict(dataset=dataset)},
            )
        )
        return check_datasets(cfg, [split], sample=sample).findings

    return check


def told(findings):
    return [(f.kind, f.file.rpartition('/')[2]) for f in findings]


@pytest.mark.parametrize('split', ['train', 'val'])
def test_sound_maps_give_nothing(check, split):
    assert check([0, 1, [2, 2, 2, 255, 255, 0]], split=split) == []


def test_each_map_with_ids_out_of_range_is_told(check):
    found = check([0, 7, 1, 9])
    assert told(found) == [('label-ids', '1.png'), ('label-ids', '3.png')]
    assert 'the ids 7, which model.decode_head (num_classes=3' in str(found[0])


def test_maps_and_images_of_other_sizes_and_broken_ones_are_told(
    check, tmp_path
):
    check([0, 1, 2, 0])
    Image.new('L', (9, 9)).save(tmp_path / 'maps/0.png')
    (tmp_path / 'maps/1.png').unlink()
    (tmp_path / 'images/2.jpg').write_bytes(b'none')
    names = tmp_path / 'names.txt'
    names.write_text('0\n1\n2\n3\n3\n')
    found = check([], ann_file='names.txt')
    assert told(found) == [
        ('image-twice', 'names.txt'),
        ('image-unreadable', '2.jpg'),
        ('label-map', '1.png'),
        ('label-map', '0.png'),
    ]
    assert '1.png is not there' in str(found[2])
    assert '0.png (9x9, not 6x4): label maps differ in size' in str(found[3])


def test_all_maps_are_there_also_beyond_a_sample(check, tmp_path):
    check([0, 1, 2, 0])
    (tmp_path / 'maps/3.png').unlink()
    assert told(check([], sample=2)) == [('label-map', '3.png')]


def test_pipes_and_programs_are_told_and_not_read(check, tmp_path):
    check([0, 1, 2, 0])
    (tmp_path / 'names.txt').write_text('0\n1\n2\n3\n')
    for name in ('maps/0.png', 'images/1.jpg'):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
    eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n'
    (tmp_path / 'maps/2.png').write_bytes(eps)
    found = check([], ann_file='names.txt')
    assert told(found) == [
        ('image-unreadable', '1.jpg'),
        ('label-map', '0.png'),
        ('label-map', '2.png'),
    ]
    # Pillow would start Ghostscript, and say so if there is none.
    assert 'is no image' in str(found[2])


def test_images_of_another_ending_and_maps_without_image_are_told(
    check, tmp_path
):
    check([0, 1, 2, 0])
    (tmp_path / 'images/1.jpg').rename(tmp_path / 'images/1.JPG')
    (tmp_path / 'images/2.jpg').unlink()
    Image.new('RGB', (6, 4)).save(tmp_path / 'images/a.png')
    (tmp_path / 'images/notes.txt').touch()
    found = check([])
    assert told(found) == [
        ('image-passed-over', 'images'),
        ('image-passed-over', 'images'),
        ('label-map-alone', '1.png'),
        ('label-map-alone', '2.png'),
    ]
    assert {finding.level for finding in found} == {'warning'}
    assert 'has 1 images in .JPG, which are passed over: 1.JPG' in str(
        found[0]
    )
    assert 'there is no 2.jpg' in str(found[3])
    # A list leaves out what it likes.
    (tmp_path / 'names.txt').write_text('0\n')
    assert check([], ann_file='names.txt') == []


def test_images_and_maps_may_lie_together(check, tmp_path):
    check([0, 1])
    for path in (tmp_path / 'maps').iterdir():
        path.rename(tmp_path / 'images' / path.name)
    prefix = dict(img_path='images', seg_map_path='images')
    assert check([], data_prefix=prefix) == []
    # Endings that choose some images of a folder leave out others.
    for path in (tmp_path / 'images').iterdir():
        path.rename(path.with_stem(f'{path.stem}_left'))
    Image.new('RGB', (6, 4)).save(tmp_path / 'images/0_depth.jpg')
    suffixes = dict(img_suffix='_left.jpg', seg_map_suffix='_left.png')
    assert check([], data_prefix=prefix, **suffixes) == []


def test_maps_with_nothing_to_learn_are_told(check):
    (finding,) = check([0, 255])
    assert (finding.kind, finding.level) == ('label-ignored', 'error')
    (finding,) = check([255, *[0] * 99])
    assert (finding.kind, finding.level) == ('label-ignored', 'warning')


def test_classes_and_the_head_must_agree(check):
    (finding,) = check([0, 1], num_classes=4)
    assert finding.kind == 'classes-head'
    assert 'has 3 classes, but model.decode_head' in str(finding)


def test_an_empty_set_is_told(check):
    found = check([0], img_suffix='.tif')
    assert told(found) == [
        ('set-empty', 'images'),
        ('image-passed-over', 'images'),
    ]
    assert "img_suffix='.tif'" in str(found[0])


def test_a_sample_reads_a_part_of_the_maps(check):
    assert told(check([0, 9, 9, 9], sample=2)) == [('label-ids', '2.png')]
