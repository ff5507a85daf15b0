"""What a forward pass needs at its peak beyond weights and images.

What libraries set up in the first pass and keep is not counted. On CUDA,
torch's allocator tells the memory. On a CPU the system tells it, that of a
process of its own for each pass; there, blocks of 64 KiB or more go back to
the system as soon as they are freed, so that it tells what is in use, not
what an allocator keeps.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from anchorformer_mm.analysis.forward_pass import (
    Build,
    Conditions,
    prepare,
    random_images,
    run,
)
from anchorformer_mm.utils.errors import UsageError

_STATUS = Path('/proc/self/status')
_CLEAR = Path('/proc/self/clear_refs')


def cpu_memory(build: Build, conditions: Conditions) -> int:
    """Peak memory of a forward pass on a CPU, in a process of its own.

    Args:
        build: What makes the network; is sent to that process.
        conditions: How it runs.

    Returns:
        int: Bytes beyond weights and images.

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
            return pool.submit(_here, build, conditions).result()
        except BrokenProcessPool as error:
            raise MemoryError(
                'the system ended its process, as it does when memory runs out'
            ) from error


def _here(build: Build, conditions: Conditions) -> int:
    torch.set_num_threads(conditions.threads)
    model = prepare(build, 'cpu')
    images = random_images(conditions)
    # What is set up once and stays is not counted, nor is the code that runs.
    run(model, images, conditions.attention)
    # From now on the peak is what is in use now, or more.
    _CLEAR.write_text('5')
    before = _status('VmRSS')
    run(model, images, conditions.attention)
    return _status('VmHWM') - before


def _status(key: str) -> int:
    """A memory of this process, bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f'{key}:'):
            return int(line.split()[1]) * 1024
    raise UsageError(f'{_STATUS} does not tell {key}')


def cuda_memory(model: nn.Module, images: Tensor, attention: str) -> int:
    """Peak memory of a forward pass on CUDA.

    Args:
        model: On the device, and run before.
        images: Its input, there as well.
        attention: Of :class:`Conditions`.

    Returns:
        int: Bytes beyond what is allocated now.
    """
    before = torch.cuda.memory_allocated(images.device)
    torch.cuda.reset_peak_memory_stats(images.device)
    run(model, images, attention)
    return torch.cuda.max_memory_allocated(images.device) - before
