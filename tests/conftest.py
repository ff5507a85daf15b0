"""Settings that hold for every test."""

import pytest
import torch
from mmengine.logging import MMLogger


@pytest.fixture(autouse=True)
def _repeatable_and_quiet():
    """Seed torch; keep mmengine's records of initialisation off the screen."""
    torch.manual_seed(0)
    MMLogger.get_instance('mmengine', log_level='WARNING')
