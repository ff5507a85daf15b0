"""Weights that a config starts from, looked up before anything is built."""

import pytest
import torch
from mmengine.config import ConfigDict

from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.pretrained_weights import (
    require_pretrained_weights,
)


def config(*checkpoints):
    """A model with a list of necks, as any part may start from a file."""
    parts = [
        dict(init_cfg=dict(type='Pretrained', checkpoint=name))
        for name in checkpoints
    ]
    return ConfigDict(model=dict(backbone=dict(type='X'), neck=parts))


@pytest.mark.parametrize(
    'checkpoint',
    ['https://host/x.pth', 'torchvision://resnet50', 'open-mmlab://resnet50'],
)
def test_what_is_fetched_is_not_looked_up(checkpoint):
    require_pretrained_weights(config(checkpoint))


def test_a_file_that_is_there_and_whole_is_fine(tmp_path):
    file = tmp_path / 'backbone.pth'
    torch.save({}, file)
    require_pretrained_weights(config(str(file)))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UsageError, match='backbone.pth cannot be read as'):
        require_pretrained_weights(config(str(file)))


def test_other_kinds_of_initialisation_and_no_model_are_fine():
    require_pretrained_weights(ConfigDict())
    init = [dict(type='TruncNormal', layer='Linear', std=0.02)]
    require_pretrained_weights(ConfigDict(model=dict(init_cfg=init)))


def test_a_missing_file_is_named_with_its_place(tmp_path):
    there = tmp_path / 'there.pth'
    there.touch()
    with pytest.raises(UsageError) as error:
        require_pretrained_weights(config(str(there), 'gone.pth'))
    assert "model.neck.1.init_cfg.checkpoint='gone.pth'" in str(error.value)
    assert 'there.pth' not in str(error.value)
