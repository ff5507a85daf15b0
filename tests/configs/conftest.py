"""Reading a config, and what its optimiser does to a model."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture
def load_config():
    """Read the config of that name and enter its scope."""

    def load(name):
        cfg = Config.fromfile(CONFIGS / f'{name}.py')
        init_default_scope(cfg.default_scope)
        return cfg

    return load


@pytest.fixture
def weight_decays():
    """The weight decay of every parameter of a model, by its ``id``."""

    def decays_of(model, optim_wrapper):
        wrapper = build_optim_wrapper(model, optim_wrapper)
        decays = {
            id(p): group['weight_decay']
            for group in wrapper.optimizer.param_groups
            for p in group['params']
        }
        assert len(decays) == len(list(model.parameters()))
        return decays

    return decays_of
