import os
import pickle
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint
from torch import nn

from anchorformer_mm.utils.checkpoint import (
    admit_mmengine_checkpoints,
    read_checkpoint,
    require_checkpoint,
    weights_only,
)
from anchorformer_mm.utils.errors import UsageError

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


@pytest.mark.parametrize('before', [None, '0', '1'])
@pytest.mark.parametrize('fails', [False, True])
def test_the_environment_is_left_as_it_was(monkeypatch, before, fails):
    if before is None:
        monkeypatch.delenv(FORCE, raising=False)
    else:
        monkeypatch.setenv(FORCE, before)
    with pytest.raises(KeyError) if fails else nullcontext(), weights_only():
        assert os.environ[FORCE] == '1'
        if fails:
            raise KeyError('inside')
    assert os.environ.get(FORCE) == before


def test_mmengine_reads_training_checkpoints_and_runs_no_code(tmp_path):
    model, path = nn.Linear(1, 1), str(tmp_path / 'a.pth')
    content = dict(state_dict=model.state_dict())
    torch.save(content | dict(meta=Malicious()), path)
    with pytest.raises(pickle.UnpicklingError), weights_only():
        load_checkpoint(model, path)
    torch.save(content | dict(message_hub=HistoryBuffer([1.0], [1])), path)
    torch.serialization.clear_safe_globals()
    with weights_only():
        loaded = load_checkpoint(model, path)
    assert loaded['message_hub'].current() == 1
    # Its forks take back what they admit.
    assert torch.load(path, weights_only=True)['message_hub'].current() == 1


FUZZED = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
WEIGHTS = dict(state_dict=dict(a=torch.arange(400.0)))


def refusal(path):
    """The one line in which a file is refused."""
    with pytest.raises(UsageError) as error, warnings.catch_warnings():
        # They would be lines too.
        warnings.simplefilter('error')
        require_checkpoint(path)
    line = str(error.value)
    assert len(line.splitlines()) == 1 and len(line) < 400 + len(str(path))
    assert str(path) in line
    # No advice to run the code of the file.
    assert 'trusted' not in line and 'False' not in line
    return line


@pytest.mark.parametrize('zipped', [True, False, None])
def test_a_checkpoint_with_code_is_one_line(tmp_path, zipped, capsys):
    content = dict(state_dict=Malicious())
    path = tmp_path / 'a.pth'
    if zipped is None:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert 'a.pth cannot be read as weights and plain data' in refusal(path)
    assert 'ran' not in capsys.readouterr().out


def test_names_in_a_file_do_nothing_to_the_terminal(tmp_path):
    (tmp_path / 'a.pth').write_bytes(b'\x80\x02ca\x1b[2J\nb\n.')
    assert r'GLOBAL a\x1b[2J.b' in refusal(tmp_path / 'a.pth')


@pytest.mark.parametrize('zipped', [True, False])
def test_a_file_that_breaks_off_is_one_line(tmp_path, zipped):
    path = tmp_path / 'a.pth'
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for share in (0, 0.01, 0.3, 0.8, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        assert 'a.pth cannot be read as weights and plain data (' in refusal(
            path
        )


def test_a_changed_bit_of_a_weight_is_one_line(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(WEIGHTS, path)
    content = path.read_bytes()
    weight = torch.tensor([399.0]).numpy().tobytes()
    path.write_bytes(content.replace(weight, b'\x01' + weight[1:]))
    # torch does not see it.
    loaded = torch.load(path, weights_only=True)['state_dict']['a']
    assert not torch.equal(loaded, WEIGHTS['state_dict']['a'])
    assert 'the checksum of a/data/0 differs' in refusal(path)


@settings(FUZZED, max_examples=200)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_any_changed_bit_is_refused_or_has_no_effect(tmp_path, place, bit):
    path = tmp_path / 'a.pth'
    torch.save(WEIGHTS, path)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        loaded = read_checkpoint(path)
    except UsageError:
        return
    assert loaded.keys() == WEIGHTS.keys()
    expected = WEIGHTS['state_dict']['a']
    assert torch.equal(loaded['state_dict']['a'], expected)


@pytest.mark.parametrize('content', [[1, 2], dict(state_dict='a')])
def test_what_has_no_weights_is_one_line(tmp_path, content):
    torch.save(content, tmp_path / 'a.pth')
    assert 'not a dictionary of weights' in refusal(tmp_path / 'a.pth')


def test_a_checkpoint_that_is_not_here(tmp_path):
    assert 'checkpoint not found: ' in refusal(tmp_path / 'no.pth')
    assert 'checkpoint not found: ' in refusal(tmp_path)
    # Theirs are not looked at.
    require_checkpoint('https://example.org/a.pth')


def test_whole_checkpoints_are_read(tmp_path):
    torch.save(WEIGHTS, tmp_path / 'a.pth')
    loaded = read_checkpoint(tmp_path / 'a.pth')
    assert torch.equal(loaded['state_dict']['a'], torch.arange(400.0))
    # Without a state_dict, as other libraries write them.
    torch.save(WEIGHTS['state_dict'], tmp_path / 'b.pth')
    assert list(read_checkpoint(tmp_path / 'b.pth')) == ['a']
