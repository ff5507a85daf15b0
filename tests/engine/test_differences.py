"""What counts as a difference between two trainings."""

import json

import pytest
import torch
from mmengine.logging import HistoryBuffer

from anchorformer_mm.engine.resuming.differences import (
    first_difference,
    logged,
)


def checkpoint(**changes):
    parts = dict(
        weights=torch.tensor([1.0, float('nan')]),
        history=HistoryBuffer([1.0, 2.0], [1, 1]),
        rate=0.1,
        path='epoch_1.pth',
    )
    parts.update(changes)
    return dict(
        meta=dict(time='now', cfg='', epoch=1),
        state_dict=dict(weights=parts['weights']),
        message_hub={
            'train/time': HistoryBuffer([0.3], [1]),
            'train/loss': parts['history'],
            'best_ckpt': f'/some/{parts["path"]}',
        },
        optimizer=[dict(lr=parts['rate'])],
    )


def test_clocks_and_folders_do_not_count():
    other = checkpoint()
    other['meta']['time'] = 'later'
    other['message_hub']['train/time'] = HistoryBuffer([0.4], [1])
    other['message_hub']['best_ckpt'] = '/another/epoch_1.pth'
    assert first_difference(checkpoint(), other) is None


@pytest.mark.parametrize(
    ('changes', 'difference'),
    [
        (
            dict(weights=torch.tensor([1.0000001, float('nan')])),
            'state_dict.weights: 1 of 2 numbers differ',
        ),
        (
            dict(weights=torch.ones(3)),
            'state_dict.weights: torch.float32 (2,) and torch.float32 (3,)',
        ),
        (
            dict(history=HistoryBuffer([1.0, 3.0], [1, 1])),
            'message_hub.train/loss[0]: 1 of 2 numbers differ',
        ),
        (
            dict(rate=0.2),
            'optimizer[0].lr: 0.1 and 0.2',
        ),
        (
            dict(path='epoch_2.pth'),
            "message_hub.best_ckpt: 'epoch_1.pth' and 'epoch_2.pth'",
        ),
    ],
)
def test_anything_else_is_named(changes, difference):
    assert first_difference(checkpoint(), checkpoint(**changes)) == difference


def test_a_part_that_only_one_has_is_named():
    other = checkpoint() | dict(ema_state_dict={})
    found = first_difference(checkpoint(), other)
    assert found == ': only one has ema_state_dict'


def test_of_a_repeated_step_the_last_counts(tmp_path):
    for run, loss in (('1', 1.0), ('2', 2.0)):
        folder = tmp_path / run / 'vis_data'
        folder.mkdir(parents=True)
        lines = [json.dumps(dict(loss=loss, step=3, time=0.1)), '{"lo']
        (folder / 'scalars.json').write_text('\n'.join(lines))
    assert logged(tmp_path) == {'train 3': dict(loss=2.0, step=3)}
