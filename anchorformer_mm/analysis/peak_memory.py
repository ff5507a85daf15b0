"""What a pass needs at its peak beyond weights and inputs.

What libraries set up in the first pass and keep is not counted. On CUDA,
torch's allocator tells the memory. On a CPU the system tells it, that of a
process of its own for each pass; there, blocks of 64 KiB or more go back to
the system as soon as they are freed, so that it tells what is in use, not
what an allocator keeps.
"""

import gc
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch

from anchorformer_mm.utils.errors import UsageError

# What is ready to run: a call is a pass, to the end of its work.
Pass = Callable[[], None]
# Makes it ready, weights and inputs included.
Start = Callable[[], Pass]

_STATUS = Path('/proc/self/status')
_CLEAR = Path('/proc/self/clear_refs')


def cpu_memory(start: Start, threads: int = 1) -> int:
    """Peak memory of a pass on a CPU, in a process of its own.

    Args:
        start: What makes the pass ready; is sent to that process.
        threads: Of torch.

    Returns:
        int: Bytes beyond weights and inputs.

    Raises:
        UsageError: The system does not tell the memory of a process.
        MemoryError: The system ended that process, as it does when memory
            runs out.
    """
    if not _CLEAR.exists():
        raise UsageError(
            'memory on a CPU is measured on Linux only, through '
            f'{_STATUS} and {_CLEAR}'
        )
    with (
        # A setting of glibc that is read when a process starts.
        patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(64 * 2**10)),
        ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool,
    ):
        try:
            return pool.submit(_here, start, threads).result()
        except BrokenProcessPool as error:
            raise MemoryError(
                'the system ended its process, as it does when memory runs out'
            ) from error


def _here(start: Start, threads: int) -> int:
    torch.set_num_threads(threads)
    run = start()
    # What is set up once and stays is not counted, nor is the code that runs.
    run()
    # What a compiler left behind would be freed, and hide what is taken.
    gc.collect()
    # From now on the peak is what is in use now, or more.
    _CLEAR.write_text('5')
    before = _status('VmRSS')
    run()
    return _status('VmHWM') - before


def _status(key: str) -> int:
    """A memory of this process, bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f'{key}:'):
            return int(line.split()[1]) * 1024
    raise UsageError(f'{_STATUS} does not tell {key}')


def cuda_memory(run: Pass, device: str) -> int:
    """Peak memory of a pass on CUDA.

    Args:
        run: The pass; was run before.
        device: Where it runs.

    Returns:
        int: Bytes beyond what is allocated now.
    """
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before
