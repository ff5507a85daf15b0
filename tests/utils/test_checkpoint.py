import os
import pickle
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint
from torch import nn

from anchorformer_mm.utils.checkpoint import (
    _history_statistic,
    admit_mmengine_checkpoints,
    weights_only,
)

FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'


@pytest.mark.smoke
def test_a_training_checkpoint_loads_without_running_code(tmp_path):
    admit_mmengine_checkpoints()
    buffer = HistoryBuffer()
    for value in (3.0, 1.0, 2.0):
        buffer.update(value)
    content = dict(loss=buffer, best=np.float64(0.5), step=np.int64(7))
    torch.save(content, tmp_path / 'a.pth')
    loaded = torch.load(tmp_path / 'a.pth', weights_only=True)
    assert loaded['loss'].statistics('max') == 3.0
    assert loaded['loss'].mean() == 2.0
    assert loaded['best'] == 0.5
    assert loaded['step'] == 7


class Malicious:
    def __reduce__(self):
        return print, ('code from a checkpoint ran',)


class Gadget:
    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


@pytest.mark.parametrize('payload', [Malicious(), Gadget()])
def test_anything_else_is_refused(tmp_path, payload, capsys):
    admit_mmengine_checkpoints()
    torch.save(dict(x=payload), tmp_path / 'a.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'a.pth', weights_only=True)
    assert 'ran' not in capsys.readouterr().out


def test_only_the_statistics_of_a_history_are_given():
    assert _history_statistic(HistoryBuffer, 'mean') is HistoryBuffer.mean
    for owner, name in ((HistoryBuffer, '__init__'), (dict, 'min')):
        with pytest.raises(pickle.UnpicklingError, match=name):
            _history_statistic(owner, name)


@pytest.mark.parametrize('before', [None, '0', '1'])
@pytest.mark.parametrize('fails', [False, True])
def test_the_environment_is_left_as_it_was(monkeypatch, before, fails):
    if before is None:
        monkeypatch.delenv(FORCE, raising=False)
    else:
        monkeypatch.setenv(FORCE, before)
    with (
        pytest.raises(KeyError) if fails else nullcontext(),
        weights_only(),
    ):
        assert os.environ[FORCE] == '1'
        if fails:
            raise KeyError('inside')
    assert os.environ.get(FORCE) == before


@pytest.mark.smoke
def test_mmengine_runs_no_code_from_a_checkpoint(tmp_path, capsys):
    model = nn.Linear(1, 1)
    content = dict(state_dict=model.state_dict(), meta=Malicious())
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(pickle.UnpicklingError), weights_only():
        load_checkpoint(model, str(tmp_path / 'a.pth'))
    assert 'ran' not in capsys.readouterr().out


def test_training_checkpoints_load_inside_and_afterwards(tmp_path):
    model = nn.Linear(1, 1)
    hub = dict(loss=HistoryBuffer([1.0], [1]))
    content = dict(state_dict=model.state_dict(), message_hub=hub)
    torch.save(content, tmp_path / 'a.pth')
    torch.serialization.clear_safe_globals()
    with weights_only():
        loaded = load_checkpoint(model, str(tmp_path / 'a.pth'))
    assert loaded['message_hub']['loss'].current() == 1
    loaded = torch.load(tmp_path / 'a.pth', weights_only=True)
    assert loaded['message_hub']['loss'].current() == 1
