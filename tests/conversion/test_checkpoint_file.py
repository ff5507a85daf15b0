"""Checkpoints are read without running their code."""

import argparse
from importlib.util import find_spec

import pytest
import torch

from anchorformer_mm.conversion import read_checkpoint
from anchorformer_mm.utils.errors import UsageError


class Malicious:
    def __reduce__(self):
        return print, ('code from a checkpoint ran',)


def test_a_checkpoint_of_the_deit_release_keeps_its_command_line(tmp_path):
    path = tmp_path / 'a.pth'
    args = argparse.Namespace(lr=0.1, model='deit')
    torch.save(dict(model=dict(a=torch.ones(2)), args=args), path)
    assert torch.equal(read_checkpoint(path)['model']['a'], torch.ones(2))


@pytest.mark.smoke
@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (dict(a=Malicious()), 'cannot be read as weights and plain data'),
        ([torch.ones(2)], 'holds a list, not a dictionary'),
        (None, 'holds a NoneType, not a dictionary'),
    ],
)
def test_other_contents_are_refused(tmp_path, content, message, capsys):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(UsageError, match=message):
        read_checkpoint(tmp_path / 'a.pth')
    assert 'ran' not in capsys.readouterr().out


@pytest.mark.parametrize('content', [b'', b'no checkpoint', b'PK\3\4 cut'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / 'a.pth').write_bytes(content)
    with pytest.raises(UsageError, match=r'a\.pth cannot be read'):
        read_checkpoint(tmp_path / 'a.pth')


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r'not found: .*a\.pth'):
        read_checkpoint(tmp_path / 'a.pth')


def test_safetensors_asks_for_its_package(tmp_path, monkeypatch):
    (tmp_path / 'a.safetensors').touch()
    monkeypatch.setattr(
        'anchorformer_mm.conversion.checkpoint_file.find_spec',
        lambda name: None if name == 'safetensors' else find_spec(name),
    )
    with pytest.raises(UsageError, match='pip install safetensors'):
        read_checkpoint(tmp_path / 'a.safetensors')


@pytest.mark.skipif(
    find_spec('safetensors') is None,
    reason='safetensors, which is optional, is not installed',
)
def test_safetensors_is_read(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / 'a.safetensors'
    save_file(dict(a=torch.ones(2)), path)
    assert torch.equal(read_checkpoint(path)['a'], torch.ones(2))
    path.write_bytes(b'no weights')
    with pytest.raises(UsageError, match='is no safetensors file'):
        read_checkpoint(path)
