"""What keeps a segmentor from starting on the data of its config."""

import os
import re
import warnings

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from anchorformer_mm.datasets.label_maps import check_label_maps
from anchorformer_mm.utils.errors import UsageError

CLASSES = ('sky', 'sea', 'sand')
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]


def write(root, maps, size=(6, 4)):
    """Images of ``size`` (W, H), and label maps: arrays, or their one id."""
    for folder in ('images', 'maps'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index, label_map in enumerate(maps):
        if not isinstance(label_map, np.ndarray):
            label_map = np.full(size[::-1], label_map, np.uint8)
        Image.new('RGB', size).save(root / 'images' / f'{index}.jpg')
        Image.fromarray(label_map).save(root / 'maps' / f'{index}.png')


def config(root, split='train', head=None, evaluator=None, **dataset):
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(root),
        data_prefix=dict(img_path='images', seg_map_path='maps'),
        metainfo=dict(classes=CLASSES),
        pipeline=LOAD,
    ) | dict(dataset)
    head = head or dict(num_classes=3)
    cfg = dict(default_scope='mmseg', model=dict(decode_head=head))
    cfg[f'{split}_dataloader'] = dict(dataset=dataset)
    cfg[f'{split}_evaluator'] = evaluator or dict(type='IoUMetric')
    return Config(cfg)


def refusal(cfg, split='train'):
    with pytest.raises(UsageError) as error:
        check_label_maps(cfg, [split])
    first, *lines, last = str(error.value).splitlines()
    assert first == 'the data does not fit the model:'
    assert '--skip-data-check' in last
    return lines


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*label maps')
        yield


@pytest.mark.smoke
@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_maps_with_classes_and_the_ignored_id_pass(
    tmp_path, split, no_warnings
):
    write(tmp_path, [0, 1, 2, np.uint8([[0, 255]] * 4).repeat(3, 1)])
    check_label_maps(config(tmp_path, split), [split])


@pytest.mark.smoke
@pytest.mark.parametrize('split', ['train', 'val'])
def test_ids_without_a_class_are_told_by_file(tmp_path, split):
    write(tmp_path, [0, 3, 1, 7, *[9] * 5])
    (line,) = refusal(config(tmp_path, split), split)
    assert line.startswith(
        f'{split}: 7 of 9 label maps have ids that model.decode_head '
        '(num_classes=3, ignore_index=255) has no class for: '
        f'{tmp_path}/maps/1.png (3), {tmp_path}/maps/3.png (7), '
    )
    assert f'{tmp_path}/maps/6.png (9) and 2 more' in line
    assert 'reduce_zero_label' not in line


def test_one_id_too_many_hints_at_the_zero_label(tmp_path):
    write(tmp_path, [1, 2, 3])
    (line,) = refusal(config(tmp_path))
    assert line.endswith(
        '; set reduce_zero_label=True for the data set if 0 is no class of '
        'its own, else num_classes=4'
    )
    check_label_maps(config(tmp_path, reduce_zero_label=True), ['train'])


def test_ids_are_those_after_the_zero_label_is_reduced(tmp_path):
    # 0 becomes 255, which is ignored, and the others one less.
    write(tmp_path, [1, 2, 3, np.uint8([[0, 3]] * 4).repeat(3, 1)])
    check_label_maps(config(tmp_path, reduce_zero_label=True), ['train'])
    write(tmp_path, [4])
    (line,) = refusal(config(tmp_path, reduce_zero_label=True))
    assert f'after reduce_zero_label: {tmp_path}/maps/0.png (3)' in line
    assert 'set reduce_zero_label' not in line


def test_ids_are_those_after_a_selection_of_classes(tmp_path):
    # Of ADE20K's classes two, its ids 0 and 2; all others are ignored.
    write(tmp_path, [1, 3, np.uint8([[2, 3]] * 4).repeat(3, 1)])
    chosen = dict(
        type='ADE20KDataset',
        metainfo=dict(classes=('sky', 'wall')),
        head=dict(num_classes=2),
    )
    check_label_maps(config(tmp_path, **chosen), ['train'])


def test_the_id_that_the_head_ignores_is_no_class(tmp_path):
    write(tmp_path, [0, np.uint8([[0, 9]] * 4).repeat(3, 1)])
    head = dict(num_classes=3, ignore_index=9)
    check_label_maps(config(tmp_path, head=head), ['train'])
    # An evaluation ignores what its metric says.
    assert '(9)' in refusal(config(tmp_path, 'val', head), 'val')[0]
    metric = [dict(type='IoUMetric', ignore_index=9)]
    check_label_maps(config(tmp_path, 'val', head, metric), ['val'])


def test_ids_of_sixteen_bits_are_no_ids_modulo_256(tmp_path):
    write(tmp_path, [0, np.full((4, 6), 258, np.uint16)])
    (line,) = refusal(config(tmp_path))
    assert 'ids beyond 255, but mmseg reads 8 bits' in line
    assert f'{tmp_path}/maps/1.png (258)' in line
    write(tmp_path, [0, np.full((4, 6), 2, np.uint16)])
    check_label_maps(config(tmp_path), ['train'])


def test_a_palette_is_read_as_ids_and_colours_are_refused(tmp_path):
    write(tmp_path, [0, 1])
    palette = Image.fromarray(np.full((4, 6), 2, np.uint8), 'P')
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / 'maps' / '0.png')
    check_label_maps(config(tmp_path), ['train'])
    palette.convert('RGB').save(tmp_path / 'maps' / '0.png')
    (line,) = refusal(config(tmp_path))
    assert 'colours instead of one id' in line
    assert f'{tmp_path}/maps/0.png (shape (4, 6, 3))' in line


@pytest.mark.smoke
def test_maps_with_nothing_to_learn_from_are_refused(tmp_path):
    write(tmp_path, [0, 255, 1])
    (line,) = refusal(config(tmp_path))
    assert line.startswith(
        'train: 1 of 3 label maps hold nothing but the ignored id 255: '
        f'{tmp_path}/maps/1.png'
    )
    write(tmp_path, [1, 0, 2])
    (line,) = refusal(config(tmp_path, reduce_zero_label=True))
    assert 'which reduce_zero_label makes of 0' in line


def test_one_ignored_map_in_a_hundred_is_but_a_warning(tmp_path):
    write(tmp_path, [255, *[0] * 99])
    with pytest.warns(UserWarning, match=r'1 of 100.*maps/0\.png'):
        check_label_maps(config(tmp_path), ['train'])


def test_an_evaluation_is_refused_if_all_maps_are_ignored(
    tmp_path, no_warnings
):
    write(tmp_path, [255, 0])
    check_label_maps(config(tmp_path, 'val'), ['val'])
    write(tmp_path, [255, 255])
    (line,) = refusal(config(tmp_path, 'val'), 'val')
    assert line.startswith('val: 2 of 2 label maps hold nothing but')


def test_sizes_that_differ_are_told(tmp_path):
    write(tmp_path, [0, np.zeros((6, 4), np.uint8)])
    (line,) = refusal(config(tmp_path))
    assert f'{tmp_path}/maps/1.png (4x6, not 6x4)' in line


def test_a_photo_that_its_header_turns_has_the_size_it_is_loaded_with(
    tmp_path,
):
    write(tmp_path, [np.zeros((6, 4), np.uint8)])
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = tmp_path / 'images' / '0.jpg'
    Image.new('RGB', (6, 4)).save(photo, exif=exif)
    check_label_maps(config(tmp_path), ['train'])
    as_stored = dict(type='LoadImageFromFile', color_type='unchanged')
    (line,) = refusal(config(tmp_path, pipeline=[as_stored, LOAD[1]]))
    assert '(4x6, not 6x4)' in line


def test_files_that_are_missing_or_broken_are_told_at_once(tmp_path):
    write(tmp_path, [0, 1, 2, 0])
    (tmp_path / 'maps' / '0.png').unlink()
    (tmp_path / 'images' / '1.jpg').write_bytes(b'none')
    (tmp_path / 'maps' / '2.png').write_bytes(b'none')
    names = tmp_path / 'names.txt'
    names.write_text('0\n1\n2\n3\nabsent\n')
    (line,) = refusal(config(tmp_path, ann_file='names.txt'))
    assert line.startswith(
        'train: 4 of 5 images or label maps cannot be read: '
    )
    assert f'{tmp_path}/maps/0.png (does not exist)' in line
    assert re.search(r'images/1\.jpg \((does not decode|failed)', line)
    assert f'{tmp_path}/maps/2.png (does not decode)' in line
    assert f'{tmp_path}/images/absent.jpg (does not exist)' in line


def test_an_empty_split_is_told(tmp_path):
    write(tmp_path, [0])
    (line,) = refusal(config(tmp_path, img_suffix='.tif'))
    assert line == (
        f"train: no image in {tmp_path}/images (img_suffix='.tif', "
        "ann_file='')"
    )


def test_classes_of_data_and_head_must_be_as_many(tmp_path):
    write(tmp_path, [0])
    (line,) = refusal(config(tmp_path, head=dict(num_classes=4)))
    assert line == (
        'train: metainfo of BaseSegDataset has 3 classes, but '
        'model.decode_head (num_classes=4, ignore_index=255) takes 4'
    )
    nameless = config(tmp_path, 'val', metainfo=None)
    assert 'has 0 classes' in refusal(nameless, 'val')[0]
    check_label_maps(config(tmp_path, metainfo=None), ['train'])


def test_wrapped_and_concatenated_sets_are_checked_each(tmp_path):
    write(tmp_path / 'a', [0, 5])
    write(tmp_path / 'b', [6, 1])
    parts = [config(tmp_path / name).train_dataloader.dataset for name in 'ab']
    cfg = config(tmp_path)
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(type='ConcatDataset', datasets=parts),
    )
    first, second = refusal(cfg)
    assert 'a/maps/1.png (5)' in first
    assert 'b/maps/0.png (6)' in second


def test_a_split_that_loads_no_maps_has_only_its_images_read(tmp_path):
    write(tmp_path, [9])
    cfg = config(tmp_path, 'test', pipeline=LOAD[:1])
    check_label_maps(cfg, ['test'])
    (tmp_path / 'images' / '0.jpg').write_bytes(b'')
    assert 'cannot be read' in refusal(cfg, 'test')[0]


def test_a_pipe_is_no_file_to_wait_for(tmp_path):
    write(tmp_path, [0, 1])
    (tmp_path / 'maps' / '1.png').unlink()
    os.mkfifo(tmp_path / 'maps' / '1.png')
    (line,) = refusal(config(tmp_path))
    assert '1.png' in line and 'no regular file' in line
