"""Memory and time of networks side by side, as ratios to the first.

Time is the median of passes that are taken in turn, so that a disturbance of
the machine meets all networks alike.
"""

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anchorformer_mm.analysis.forward_pass import (
    ATTENTION,
    Build,
    Conditions,
    prepare,
    random_images,
    run,
)
from anchorformer_mm.analysis.peak_memory import cpu_memory, cuda_memory
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.tables import markdown_table

_MIB = 2**20


@dataclass(frozen=True)
class Result:
    """What was measured of a network.

    Attributes:
        name: The network.
        conditions: How it ran.
        weights: Parameters and buffers, bytes.
        memory: Peak of a pass beyond weights and images, bytes.
        seconds: Time of each pass.
    """

    name: str
    conditions: Conditions
    weights: int
    memory: int
    seconds: Sequence[float]

    @property
    def latency(self) -> float:
        """Median time of a pass, seconds."""
        return statistics.median(self.seconds)


def measure(
    builds: Mapping[str, Build],
    conditions: Conditions,
    *,
    attention: Sequence[str] = ATTENTION,
    repeats: int = 5,
    progress: Callable[[str], None] = print,
) -> list[Result]:
    """Measure networks on images of one size.

    Args:
        builds: Names, and what makes the networks. On a CPU it is sent to
            another process.
        conditions: How they run.
        attention: ``'auto'``, ``'math'``, see :class:`Conditions`, or both:
            then networks with fused attention are measured twice.
        repeats: Timed passes of each network, after one that is not timed.
        progress: Told what is done.

    Returns:
        list[Result]: In the order of ``builds``.

    Raises:
        UsageError: A network does not run on such images, or an argument is
            out of its range.
    """
    if repeats < 1:
        raise UsageError(f'repeats must be >= 1, got {repeats}')
    kinds = [
        replace(conditions, attention=kind)
        for kind in ATTENTION
        if kind in attention
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(conditions.threads)
    try:
        images = random_images(conditions)
        results = []
        models = {}
        for name, build in builds.items():
            models[name] = prepare(build, conditions.device)
            for kind in kinds:
                memory, fused = _first_pass(
                    name, build, models[name], images, kind
                )
                weights = _bytes(models[name])
                results.append(Result(name, kind, weights, memory, []))
                progress(f'{_label(name, kind)}: {memory / _MIB:.1f} MiB')
                if not fused:
                    break
        for i in range(repeats):
            progress(f'{_size(conditions)}: pass {i + 1} of {repeats}')
            for result in results:
                start = perf_counter()
                run(models[result.name], images, result.conditions.attention)
                result.seconds.append(perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return results


def _first_pass(
    name: str,
    build: Build,
    model: nn.Module,
    images: Tensor,
    conditions: Conditions,
) -> tuple[int, bool]:
    """Peak memory, and whether there was fused attention."""
    try:
        # Where it runs out of memory, let it be another process.
        memory = cpu_memory(build, conditions) if conditions.on_cpu else None
        with _FusedAttention() as fused:
            run(model, images, conditions.attention)
        if memory is None:
            memory = cuda_memory(model, images, conditions.attention)
    except UsageError:
        raise
    except Exception as error:
        # Whatever an unknown network may raise.
        reason = shorten(f'{type(error).__name__}: {error}', 400)
        raise UsageError(
            f'{_label(name, conditions)} does not run: {reason}'
        ) from error
    return memory, fused.seen


class _FusedAttention(TorchDispatchMode):
    """Sees whether torch's fused attention runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen |= 'scaled_dot_product' in func.name()
        return func(*args, **(kwargs or {}))


def _bytes(model: nn.Module) -> int:
    tensors = (*model.parameters(), *model.buffers())
    return sum(t.numel() * t.element_size() for t in tensors)


def _size(conditions: Conditions) -> str:
    return '{} x {}'.format(*conditions.shape)


def _label(name: str, conditions: Conditions) -> str:
    return f'{name} at {_size(conditions)} ({conditions.attention})'


def benchmark_table(results: Sequence[Result]) -> str:
    """Write results as a table of Markdown.

    Ratios are to the first network on images of the same size: below 1 it
    needs less.
    """
    header = ['backbone', 'attention', 'size', 'weights (MiB)']
    header += ['memory (MiB)', 'ratio', 'with weights (MiB)', 'ratio']
    header += ['latency (ms)', 'least to most', 'ratio']
    peers: dict[tuple[int, int], Result] = {}
    lines = []
    for result in results:
        peer = peers.setdefault(result.conditions.shape, result)
        total = result.weights + result.memory
        spread = (1e3 * f(result.seconds) for f in (min, max))
        lines.append(
            [
                result.name,
                result.conditions.attention,
                _size(result.conditions),
                f'{result.weights / _MIB:.1f}',
                f'{result.memory / _MIB:.1f}',
                _ratio(result.memory, peer.memory),
                f'{total / _MIB:.1f}',
                _ratio(total, peer.weights + peer.memory),
                f'{1e3 * result.latency:.1f}',
                '{:.1f} to {:.1f}'.format(*spread),
                _ratio(result.latency, peer.latency),
            ]
        )
    return markdown_table(header, lines)


def _ratio(value: float, of_peer: float) -> str:
    return f'{value / of_peer:.3f}' if of_peer else '-'


def hardware_line(conditions: Conditions) -> str:
    """Say what the figures were measured on."""
    if conditions.on_cpu:
        where = f'{_cpu_name()}, threads: {conditions.threads}'
    else:
        where = torch.cuda.get_device_name(conditions.device)
    dtype = str(torch.get_default_dtype()).removeprefix('torch.')
    return (
        f'{where}; torch {torch.__version__}; {dtype}, images at a time: '
        f'{conditions.batch_size}'
    )


def _cpu_name() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    for line in lines:
        if line.startswith('model name'):
            return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()
