"""Settings that hold for every test."""

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def _repeatable_quiet_and_apart():
    """Seed torch; keep mmengine's records of initialisation off the screen,
    and the default scope of one test out of the next."""
    torch.manual_seed(0)
    MMLogger.get_instance('mmengine', log_level='WARNING')
    yield
    DefaultScope._instance_dict.clear()
