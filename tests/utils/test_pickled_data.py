"""Configs whose data would run code are refused before it is read."""

from pathlib import Path

import mmengine
import pytest
from mmengine.config import Config
from mmengine.fileio.handlers import JsonHandler, file_handlers

from anchorformer_mm.utils.dataset_paths import require_datasets
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.pickled_data import FORMATS, require_no_pickles


def loader(**dataset):
    return dict(dataset=dict(type='RepeatDataset', dataset=dataset))


@pytest.mark.parametrize(
    ('cfg', 'named'),
    [
        (
            dict(train_dataloader=loader(ann_file='a.pkl')),
            "train_dataloader.dataset.dataset.ann_file='a.pkl'",
        ),
        (
            dict(train_dataloader=loader(proposal_file='x/p.pickle')),
            "train_dataloader.dataset.dataset.proposal_file='x/p.pickle'",
        ),
        (
            dict(train_dataloader=loader(ann_file='a.yaml')),
            "train_dataloader.dataset.dataset.ann_file='a.yaml'",
        ),
        (
            dict(train_dataloader=loader(ann_file=Path('b/a.yml'))),
            "train_dataloader.dataset.dataset.ann_file='b/a.yml'",
        ),
        (
            dict(train_dataloader=loader(ann_file='pkl')),
            "train_dataloader.dataset.dataset.ann_file='pkl'",
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
def test_a_pickle_is_named_with_its_place(cfg, named):
    with pytest.raises(UsageError) as error:
        require_no_pickles(Config(cfg), ['train'])
    assert f'not read here: {named}. If' in str(error.value)


def test_all_but_json_that_mmengine_reads_is_refused():
    safe = {
        name
        for name, handler in file_handlers.items()
        if isinstance(handler, JsonHandler)
    }
    assert set(FORMATS) == set(file_handlers) - safe


def test_mmengine_takes_a_file_for_what_its_name_ends_in(
    tmp_path, monkeypatch
):
    # Why a name without a suffix is refused too.
    monkeypatch.chdir(tmp_path)
    mmengine.dump([1], 'pkl', file_format='pkl')
    assert mmengine.load('pkl') == [1]


def test_what_will_not_run_or_is_written_is_let_pass():
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


def test_it_is_checked_before_anything_is_missed():
    cfg = Config(dict(train_dataloader=loader(ann_file='/no/a.pkl')))
    with pytest.raises(UsageError, match='run code'):
        require_datasets(cfg, ['train'])
