from pathlib import Path

import pytest
from mmengine.config import Config

from anchorformer_mm.utils.dataset_paths import (
    dataset_paths,
    require_datasets,
)
from anchorformer_mm.utils.errors import UsageError

CONFIGS = Path(__file__).parents[2] / 'configs'


def config(root):
    dataset = dict(
        data_root=str(root),
        ann_file='annotations/a.json',
        data_prefix=dict(img='train/'),
    )
    loader = dict(dataset=dict(type='RepeatDataset', dataset=dataset))
    return Config(dict(train_dataloader=loader, val_dataloader=None))


def test_a_complete_data_set_passes(tmp_path):
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations' / 'a.json').touch()
    (tmp_path / 'train').mkdir()
    require_datasets(config(tmp_path), ('train', 'val'))


def test_what_is_missing_is_named_in_one_message(tmp_path):
    (tmp_path / 'train').mkdir()
    with pytest.raises(UsageError) as error:
        require_datasets(config(tmp_path), ('train', 'val'))
    lines = [line.split() for line in str(error.value).splitlines()]
    assert [f'{tmp_path}/annotations/a.json', 'missing'] in lines
    assert [f'{tmp_path}/train', 'ok'] in lines


@pytest.mark.smoke
def test_absent_coco_is_told_as_the_tree_that_mmdet_expects(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(CONFIGS / 'picodet_anchorformer_s_coco.py')
    with pytest.raises(UsageError) as error:
        require_datasets(cfg, ('train', 'val'))
    for path in (
        'data/coco/annotations/instances_train2017.json',
        'data/coco/annotations/instances_val2017.json',
        'data/coco/train2017',
        'data/coco/val2017',
    ):
        assert path in str(error.value)
    assert 'https://cocodataset.org' in str(error.value)


def test_absent_bccd_is_told_with_the_commands_that_make_it(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(CONFIGS / 'picodet_s_bccd.py')
    with pytest.raises(UsageError) as error:
        require_datasets(cfg, ('train', 'val', 'test'))
    for path in ('train.json', 'val.json', 'test.json', 'images'):
        assert f'data/bccd/{path}' in str(error.value)
    hint = next(
        line
        for line in str(error.value).splitlines()
        if line.startswith('Get it: ')
    )
    assert 'github.com/Shenggan/BCCD_Dataset' in hint
    assert 'python tools/dataset_converters/voc_to_coco.py' in hint
    assert 'cocodataset.org' not in hint


def test_absent_ade20k_is_told_as_the_tree_that_mmseg_expects(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    cfg = dict()
    for split, folder in (('train', 'training'), ('val', 'validation')):
        dataset = dict(
            data_root='data/ade/ADEChallengeData2016',
            ann_file='',
            data_prefix=dict(
                img_path=f'images/{folder}',
                seg_map_path=f'annotations/{folder}',
            ),
        )
        cfg[f'{split}_dataloader'] = dict(dataset=dataset)
    with pytest.raises(UsageError) as error:
        require_datasets(Config(cfg), ('train', 'val'))
    lines = [line.split() for line in str(error.value).splitlines()]
    for kind in ('images', 'annotations'):
        for folder in ('training', 'validation'):
            path = f'data/ade/ADEChallengeData2016/{kind}/{folder}'
            assert [path, 'missing'] in lines
    assert 'ADEChallengeData2016.zip, unpacked in data/ade' in str(error.value)


@pytest.mark.parametrize(
    ('dataset', 'expected'),
    [
        (dict(data_root='d', data_prefix='train'), ['d/train']),
        (dict(data_root='d'), ['d']),
        (dict(data_root='s3://d', ann_file='a.json'), []),
        (dict(data_root='d', ann_file='/x/a.json'), ['/x/a.json']),
        (
            dict(
                data_root='d',
                ann_file='',
                data_prefix=dict(img_path='i', seg_map_path='s'),
            ),
            ['d/i', 'd/s'],
        ),
    ],
)
def test_paths_are_joined_as_the_libraries_do(dataset, expected):
    paths = dataset_paths(Config(dataset)._cfg_dict)
    assert [str(p) for p in paths] == expected


def test_concatenated_sets_are_all_checked(tmp_path):
    parts = [
        dict(data_root=str(tmp_path), ann_file=f'{name}.json')
        for name in ('a', 'b')
    ]
    loader = dict(dataset=dict(type='ConcatDataset', datasets=parts))
    with pytest.raises(UsageError, match=r'(?s)a\.json.*b\.json'):
        require_datasets(Config(dict(train_dataloader=loader)), ('train',))
