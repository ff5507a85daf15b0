"""Reading mmengine's checkpoints without running code from them."""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_STATISTICS = ('min', 'max', 'current', 'mean')


def _history_statistic(owner: type, name: str):
    """Stand in for ``getattr`` while a checkpoint is read.

    mmengine's history buffers carry references to their own statistics
    methods, which pickle writes as ``getattr(HistoryBuffer, 'mean')``. This
    gives those methods and nothing else.

    Raises:
        pickle.UnpicklingError: Any other attribute is asked for.
    """
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError(
            f'the checkpoint asks for attribute {name!r} of {owner!r}; only '
            f'{_STATISTICS} of HistoryBuffer are admitted'
        )
    return getattr(owner, name)


def admit_mmengine_checkpoints() -> None:
    """Let ``torch.load(..., weights_only=True)`` read a training checkpoint.

    Beside tensors, mmengine stores its history buffers and NumPy scalars.
    The original mmengine (0.10.7 and older) cannot resume from its own
    checkpoints on torch >= 2.6, where ``weights_only=True`` is the default.
    Exactly those classes are admitted here; anything else in a file still
    refuses to load. Older torch, which lacks the list, is left as it is.
    """
    if not hasattr(torch.serialization, 'add_safe_globals'):
        return
    core = np._core if hasattr(np, '_core') else np.core
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            np.ndarray,
            np.dtype,
            core.multiarray._reconstruct,
            core.multiarray.scalar,
            *{type(np.dtype(t)) for t in ('f2', 'f4', 'f8', 'i4', 'i8', '?')},
            (_history_statistic, 'builtins.getattr'),
        ]
    )


@contextmanager
def weights_only() -> Iterator[None]:
    """Let no ``torch.load`` inside run code from a file.

    For functions that load a checkpoint and offer no argument for this, such
    as mmengine's ``load_checkpoint``, which on its forks would otherwise run
    code from a file that refuses to load without. What
    :func:`admit_mmengine_checkpoints` admits does load, inside and later on.

    It works through an environment variable of torch, hence for all threads
    of the process; on leaving, however that happens, it is as it was.
    """
    before = os.environ.get(_FORCE)
    admit_mmengine_checkpoints()
    os.environ[_FORCE] = '1'
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_FORCE, None)
        else:
            os.environ[_FORCE] = before
        # The forks take back what they admit, though we had admitted it.
        admit_mmengine_checkpoints()
