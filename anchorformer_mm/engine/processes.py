"""Which of the processes of a launcher this is, before they have met."""

import os

# Where each launcher says it.
_RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


def is_first_process(launcher: str) -> bool:
    """Whether this is the first process that a launcher has started.

    Args:
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
    """
    variable = _RANKS.get(launcher)
    return variable is None or os.environ.get(variable, '0') == '0'


def restarts() -> int:
    """Return how often torchrun has started this job's processes again."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))
