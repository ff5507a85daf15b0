"""Files that are whole or not there, and those that a config names."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.fileio.handlers import JsonHandler, file_handlers

from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import (
    LAYOUTS,
    UNSAFE_FORMATS,
    dataset_paths,
    replacing,
    require_datasets,
    require_no_pickles,
)

CONFIGS = Path(__file__).parents[2] / 'configs'


def test_the_file_is_there_at_the_end(tmp_path):
    path = tmp_path / 'new' / 'a.b.txt'
    with replacing(path) as temporary:
        temporary.write_text('new')
        assert temporary.suffix == '.txt'
        assert not path.exists()
    assert path.read_text() == 'new'
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / 'b.txt'
    path.write_text('old')
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text('half')
        raise ZeroDivisionError
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def loader(**dataset):
    return dict(dataset=dict(type='RepeatDataset', dataset=dataset))


class TestDatasets:
    @pytest.fixture
    def cfg(self, tmp_path):
        train = loader(
            data_root=str(tmp_path),
            ann_file='annotations/a.json',
            data_prefix=dict(img='train/'),
        )
        return Config(dict(train_dataloader=train, val_dataloader=None))

    def test_a_complete_one_passes(self, cfg, tmp_path):
        (tmp_path / 'annotations').mkdir()
        (tmp_path / 'annotations' / 'a.json').touch()
        (tmp_path / 'train').mkdir()
        require_datasets(cfg, ('train', 'val'))

    def test_what_is_missing_is_named_in_one_message(self, cfg, tmp_path):
        (tmp_path / 'train').mkdir()
        with pytest.raises(UsageError) as error:
            require_datasets(cfg, ('train', 'val'))
        lines = [line.split() for line in str(error.value).splitlines()]
        assert [f'{tmp_path}/annotations/a.json', 'missing'] in lines
        assert [f'{tmp_path}/train', 'ok'] in lines

    def test_absent_ones_are_told_with_where_to_get_them(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        cfg = Config.fromfile(CONFIGS / 'picodet_s_bccd.py')
        with pytest.raises(UsageError, match='bccd/train.json') as error:
            require_datasets(cfg, ('train', 'val'))
        assert f'Get it: {LAYOUTS["bccd"]}\n' in str(error.value)

    @pytest.mark.parametrize(
        ('dataset', 'expected'),
        [
            (dict(data_root='d', data_prefix='train'), ['d/train']),
            (dict(data_root='d'), ['d']),
            (dict(data_root='s3://d', ann_file='a.json'), []),
            (dict(data_root='d', ann_file='/x/a.json'), ['/x/a.json']),
            (dict(ann_file='a.json', data_prefix=''), ['a.json']),
            (
                dict(data_root='d', data_prefix=dict(img='i', seg='s')),
                ['d/i', 'd/s'],
            ),
        ],
    )
    def test_paths_are_joined_as_the_libraries_do(self, dataset, expected):
        paths = dataset_paths(Config(dataset))
        assert [str(p) for p in paths] == expected

    def test_concatenated_ones_are_all_checked(self, tmp_path):
        parts = [
            dict(data_root=str(tmp_path), ann_file=f'{name}.json')
            for name in ('a', 'b')
        ]
        train = dict(dataset=dict(type='ConcatDataset', datasets=parts))
        with pytest.raises(UsageError, match=r'(?s)a\.json.*b\.json'):
            require_datasets(Config(dict(train_dataloader=train)), ('train',))


class TestPickles:
    """Configs whose data would run code are refused before it is read."""

    @pytest.mark.parametrize(
        ('cfg', 'named'),
        [
            *(
                (
                    dict(train_dataloader=loader(ann_file=file)),
                    f"train_dataloader.dataset.dataset.ann_file='{file}'",
                )
                for file in ('a.pkl', 'x/p.pickle', 'a.yaml', 'pkl')
            ),
            (
                dict(train_dataloader=loader(ann_file=Path('b/a.yml'))),
                "train_dataloader.dataset.dataset.ann_file='b/a.yml'",
            ),
            (
                dict(model=dict(heads=[dict(class_weight='w.pkl')])),
                "model.heads.0.class_weight='w.pkl'",
            ),
            (
                dict(train_evaluator=[dict(ann_file='a.pkl')]),
                "train_evaluator.0.ann_file='a.pkl'",
            ),
        ],
    )
    def test_one_is_named_with_its_place(self, cfg, named):
        with pytest.raises(UsageError) as error:
            require_datasets(Config(cfg), ['train'])
        assert f'not read here: {named}. If' in str(error.value)

    def test_all_but_json_that_mmengine_reads_is_refused(self):
        safe = {
            name
            for name, handler in file_handlers.items()
            if isinstance(handler, JsonHandler)
        }
        assert set(UNSAFE_FORMATS) == set(file_handlers) - safe

    def test_what_will_not_run_or_is_written_is_let_pass(self):
        cfg = dict(
            model=None,
            train_dataloader=loader(ann_file='a.json', n=3),
            train_evaluator=[
                dict(type='DumpResults', out_file_path='out.pkl'),
                dict(type='DumpProposals', proposals_file='proposals.pkl'),
            ],
            test_dataloader=loader(ann_file='a.pkl'),
        )
        require_no_pickles(Config(cfg), ['train', 'val'])
