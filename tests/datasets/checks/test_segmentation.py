"""Findings about label maps, one line each file."""

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
        ('label-map', '0.png'),
        ('label-map', '1.png'),
    ]
    assert '0.png (9x9, not 6x4): label maps differ in size' in str(found[2])


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
    (finding,) = check([0], img_suffix='.tif')
    assert finding.kind == 'set-empty'
    assert "img_suffix='.tif'" in str(finding)


def test_a_sample_reads_a_part_of_the_maps(check):
    assert told(check([0, 9, 9, 9], sample=2)) == [('label-ids', '2.png')]
