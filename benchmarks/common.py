"""Shared by the scripts: machine, peak memory, generated parts of pages."""

import argparse
import gc
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import replacing

ROOT = Path(__file__).resolve().parents[1]
# A pass, to the end of its work on the device; and what makes it ready,
# weights and inputs included.
Pass = Callable[[], object]
Start = Callable[[], Pass]

_STATUS = Path('/proc/self/status')
_CLEAR = Path('/proc/self/clear_refs')
_DISTRIBUTIONS = (
    'torch mmengine onedl-mmengine mmcv onedl-mmcv mmdet onedl-mmdetection '
    'mmsegmentation onedl-mmsegmentation mmpretrain onedl-mmpretrain onnx '
    'onnxruntime openvino ncnn pnnx'
)


def progress(line: str) -> None:
    """Tell what is done, beside the results."""
    print(line, file=sys.stderr, flush=True)


def argument_parser(description: str = '', **more) -> argparse.ArgumentParser:
    """Make a parser whose help shows the defaults."""
    style = argparse.ArgumentDefaultsHelpFormatter
    return argparse.ArgumentParser(
        description=description, formatter_class=style, **more
    )


def a_device(text: str) -> str:
    """Read the name of a device that is there: CPU, or one of CUDA."""
    try:
        kind = torch.empty(1, device=text).device.type
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f'{text!r}: {error}') from error
    if kind not in ('cpu', 'cuda'):
        raise argparse.ArgumentTypeError(f'{text!r} is not cpu or cuda')
    return text


def a_count(text: str) -> int:
    """Read a number of 1 or more."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f'must be >= 1, got {value}')
    return value


def a_file(text: str) -> Path:
    """Read a path that can be a file to write."""
    if (path := Path(text)).is_dir():
        raise argparse.ArgumentTypeError(f'{path} is a folder')
    return path


def on_cpu(device: str) -> bool:
    return torch.device(device).type == 'cpu'


def machine_line(device: str = 'cpu') -> str:
    """Name the processor and the version of torch."""
    if not on_cpu(device):
        name = torch.cuda.get_device_name(device)
    else:
        info = Path('/proc/cpuinfo')
        text = info.read_text() if info.exists() else ''
        found = re.search(r'^model name\s*: (.+)$', text, re.MULTILINE)
        name = found[1] if found else platform.processor()
    return f'{name}; torch {torch.__version__}'


def versions() -> dict[str, str]:
    """Versions of the libraries that take part, as far as installed."""
    found = {}
    for name in _DISTRIBUTIONS.split():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_memory(start: Start, device: str, threads: int) -> int:
    """Peak memory of a pass beyond weights and inputs, bytes.

    What libraries set up in the first pass and keep is not counted. On CUDA
    torch's allocator tells the memory. On a CPU the system tells it, that of
    a fresh process: there, blocks of 64 KiB or more go back to the system as
    soon as they are freed, so that it is what is in use, not what an
    allocator keeps.

    Args:
        start: Is sent to another process on a CPU.
        device: Where the pass runs.
        threads: Of torch on a CPU.

    Raises:
        UsageError: The system does not tell the memory of a process.
        MemoryError: The system ended the process.
    """
    if not on_cpu(device):
        run = start()
        run()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    if not _CLEAR.exists():
        raise UsageError(
            f'memory on a CPU is measured on Linux only, through {_CLEAR}'
        )
    with (
        # glibc reads this when a process starts.
        patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(64 * 2**10)),
        ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool,
    ):
        try:
            return pool.submit(_peak_here, start, threads).result()
        except BrokenProcessPool as error:
            raise MemoryError(
                'the system ended the process, as it does when memory runs out'
            ) from error


def _peak_here(start: Start, threads: int) -> int:
    torch.set_num_threads(threads)
    run = start()
    run()
    # What a compiler left behind would be freed, and hide what is taken.
    gc.collect()
    # Sets the peak to what is in use now.
    _CLEAR.write_text('5')
    before = _status('VmRSS')
    run()
    return _status('VmHWM') - before


def _status(key: str) -> int:
    found = re.search(rf'^{key}:\s*(\d+) kB$', _STATUS.read_text(), re.M)
    return int(found[1]) * 1024


def onnx_session(file: bytes, threads: int, arena: bool, *providers) -> Any:
    """Open a file in ONNX Runtime, whose arena keeps memory that was taken."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = arena
    # Its threads would go on after a pass, and disturb that of another.
    options.add_session_config_entry('session.force_spinning_stop', '1')
    places = list(providers) or ['CPUExecutionProvider']
    return onnxruntime.InferenceSession(file, options, places)


def replace_blocks(page: str, blocks: Mapping[str, str]) -> str:
    """Return a page of Markdown with new content in its generated parts.

    A part stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.

    Raises:
        UsageError: The page lacks a part, or has it twice.
    """
    for name, content in blocks.items():
        begin, end = f'<!-- begin {name} -->', f'<!-- end {name} -->'
        if page.count(begin) != 1 or page.count(end) != 1:
            raise UsageError(f'the page must have one {begin} ... {end}')
        head, rest = page.split(begin)
        tail = rest.split(end)[-1]
        page = f'{head}{begin}\n{content}\n{end}{tail}'
    return page


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write a file of JSON, whole or not at all."""
    with replacing(path) as file:
        file.write_text(json.dumps(content, indent=1) + '\n')


def read_text(path: Path) -> str:
    """Read a file of the project.

    Raises:
        UsageError: It is not there.
    """
    if not path.is_file():
        raise UsageError(f'file not found: {path}')
    return path.read_text(encoding='utf-8')


def update_files(files: Mapping[Path, str], check: bool, script: str) -> None:
    """Write the files whose content is another, or refuse them.

    Args:
        files: Paths, and what they shall hold.
        check: Write nothing.
        script: What makes the files, for the message.

    Raises:
        UsageError: With ``check``, a file is not up to date.
    """
    stale = [
        path
        for path, text in files.items()
        if not path.is_file() or path.read_text(encoding='utf-8') != text
    ]
    if check and stale:
        raise UsageError(
            f'not up to date: {", ".join(map(str, stale))}; '
            f'python benchmarks/{script} makes them'
        )
    for path in stale:
        with replacing(path) as file:
            file.write_text(files[path], encoding='utf-8')
        print(path)
