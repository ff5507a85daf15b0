"""What loading a model does beside it: nothing."""

import os

import pytest
import torch
from mmengine.config import Config

from anchorformer_mm.analysis.inference import load_model
from anchorformer_mm.utils.errors import UsageError

FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
CONFIG = dict(
    default_scope='mmpretrain',
    model=dict(
        type='ImageClassifier',
        backbone=dict(
            type='anchorformer_mm.AnchorFormer',
            arch=dict(
                embed_dims=8,
                num_layers=1,
                num_heads=2,
                feedforward_channels=8,
            ),
            img_size=16,
            patch_size=8,
        ),
    ),
)


class Malicious:
    def __reduce__(self):
        return print, ('code from a checkpoint ran',)


def test_a_checkpoint_runs_no_code_and_the_environment_stays(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv(FORCE, raising=False)
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict={}, meta=Malicious()), path)
    with pytest.raises(UsageError, match=r'a\.pth cannot be read'):
        load_model(Config(CONFIG), path)
    assert 'ran' not in capsys.readouterr().out
    assert FORCE not in os.environ
