"""Checkpoints, files, libraries and messages."""

from anchorformer_mm.utils.environment import (
    EnvironmentProblem,
    check_environment,
)
from anchorformer_mm.utils.errors import UsageError, run_command_line

__all__ = [
    'EnvironmentProblem',
    'UsageError',
    'check_environment',
    'run_command_line',
]
