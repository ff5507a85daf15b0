"""What was changed in a config."""

import pytest
from mmengine.config import Config

from anchorformer_mm.engine.resuming.config_changes import config_changes

BEFORE = dict(
    model=dict(type='A', widths=[1, 2], arch={'a.b': 1}),
    optim_wrapper=dict(optimizer=dict(lr=0.1)),
    work_dir='a',
)


def text(**changes):
    cfg = Config(BEFORE)
    cfg.merge_from_dict(changes)
    return cfg.pretty_text


def test_changes_are_named_with_both_values():
    now = {
        'optim_wrapper.optimizer.lr': 0.5,
        'model.widths': [1, 3],
        'new': 1,
        'work_dir': 'b',
    }
    assert config_changes(text(), text(**now)) == [
        'model.widths.1: 2 -> 3',
        'new: (none) -> 1',
        'optim_wrapper.optimizer.lr: 0.1 -> 0.5',
    ]
    assert config_changes(text(), text(work_dir='b')) == []


@pytest.mark.parametrize(
    'hostile', ['', 'a = (', '\0', 'a = ' + '-' * 100_000 + '1', 'import os']
)
def test_texts_are_parsed_and_never_run(hostile, tmp_path):
    mark = tmp_path / 'mark'
    code = f'open({str(mark)!r}, "w")\n'
    config_changes(code + hostile, text())
    assert not mark.exists()
