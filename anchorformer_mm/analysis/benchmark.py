"""Memory and time of networks side by side, as ratios to the first.

Time is that of passes that are taken in turn, so that a disturbance of the
machine meets all networks and runtimes alike.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from time import perf_counter, sleep

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anchorformer_mm.analysis.benchmark_results import (
    Candidate,
    Result,
    mebibytes,
    size_in_words,
)
from anchorformer_mm.analysis.forward_pass import ATTENTION, Conditions
from anchorformer_mm.analysis.machine import machine_line
from anchorformer_mm.analysis.peak_memory import (
    Pass,
    cpu_memory,
    cuda_memory,
)
from anchorformer_mm.analysis.runtimes import (
    compiling,
    start_compiled,
    start_eager,
    start_onnx,
)
from anchorformer_mm.utils.errors import UsageError

# Before each pass, seconds: threads that the last one left waiting for more
# work fall asleep.
_REST = 0.005


def measure(
    candidates: Sequence[Candidate],
    conditions: Sequence[Conditions],
    *,
    runtimes: Sequence[str] = ('eager',),
    attention: Sequence[str] = ('auto',),
    warm_up: int = 3,
    runs: int = 10,
    progress: Callable[[str], None] = print,
) -> list[Result]:
    """Measure networks; those under the same conditions take turns.

    Args:
        candidates: The networks.
        conditions: How they run; each is measured by itself.
        runtimes: See :data:`~anchorformer_mm.analysis.runtimes.RUNTIMES`.
        attention: ``'auto'``, ``'math'``, see :class:`Conditions`, or both:
            then networks with fused attention are measured twice. Of eager
            alone.
        warm_up: Passes of each before those that count, at least one.
        runs: Passes that count.
        progress: Told what is done.

    Returns:
        list[Result]: By conditions, then as ``candidates``.

    Raises:
        UsageError: A network does not run so, or an argument is out of its
            range.
    """
    for name, value in (('warm_up', warm_up), ('runs', runs)):
        if value < 1:
            raise UsageError(f'{name} must be >= 1, got {value}')
    results = []
    threads = torch.get_num_threads()
    with TemporaryDirectory() as folder:
        meeting = _Meeting(runtimes, attention, Path(folder), progress)
        try:
            for each in conditions:
                torch.set_num_threads(each.threads)
                compiled = 'compile' in runtimes
                with compiling() if compiled else nullcontext():
                    entries = [
                        entry
                        for candidate in candidates
                        for entry in meeting.enter(candidate, each)
                    ]
                    _take_turns(entries, each, warm_up - 1, runs, progress)
                results += [result for result, _ in entries]
        finally:
            torch.set_num_threads(threads)
    return results


_Entry = tuple[Result, Pass]


class _Meeting:
    """Makes networks ready, and measures what passes in turn do not."""

    def __init__(
        self,
        runtimes: Sequence[str],
        attention: Sequence[str],
        folder: Path,
        progress: Callable[[str], None],
    ) -> None:
        self.runtimes = runtimes
        self.attention = [kind for kind in ATTENTION if kind in attention]
        self.folder = folder
        self.progress = progress
        self.files: dict[tuple, Path] = {}

    def enter(
        self, candidate: Candidate, conditions: Conditions
    ) -> list[_Entry]:
        """A network in each of the runtimes, after its first pass."""
        task, weights = candidate.facts()
        of_all = dict(task=task, weights=weights)
        entries = []
        for runtime in self.runtimes:
            kinds = self.attention if runtime == 'eager' else ('auto',)
            for kind in kinds:
                each = replace(conditions, attention=kind)
                result = Result(
                    candidate.name,
                    runtime,
                    each,
                    **of_all,
                    memory=None,
                    first=0.0,
                )
                try:
                    result, run, fused = self._first_pass(candidate, result)
                except UsageError:
                    raise
                except Exception as error:
                    # Whatever an unknown network may raise.
                    reason = shorten(f'{type(error).__name__}: {error}', 400)
                    raise UsageError(
                        f'{result.label} does not run: {reason}'
                    ) from error
                entries.append((result, run))
                memory = mebibytes(result.memory)
                self.progress(
                    f'{result.label}: {memory} MiB, first pass '
                    f'{result.first:.1f} s'
                )
                if not fused:
                    break
        return entries

    def _first_pass(
        self, candidate: Candidate, result: Result
    ) -> tuple[Result, Pass, bool]:
        """Memory and first pass, the pass, and whether attention was fused."""
        conditions = result.conditions
        start = self._starter(candidate, result)
        memory = None
        if conditions.on_cpu:
            # Where it runs out of memory, let it be another process.
            frugal = start
            if result.runtime == 'onnx':
                # What is kept for the next pass is not in use.
                frugal = partial(start, arena=False)
            memory = cpu_memory(frugal, conditions.threads)
        run = start()
        with ExitStack() as stack:
            seen = _FusedAttention()
            if result.runtime == 'eager':
                stack.enter_context(seen)
            begin = perf_counter()
            run()
            first = perf_counter() - begin
        if not conditions.on_cpu and result.runtime != 'onnx':
            memory = cuda_memory(run, conditions.device)
        return replace(result, memory=memory, first=first), run, seen.seen

    def _starter(
        self, candidate: Candidate, result: Result
    ) -> Callable[..., Pass]:
        if result.runtime == 'onnx':
            path = self._file(candidate, result.conditions)
            return partial(start_onnx, path, result.conditions)
        start = start_eager if result.runtime == 'eager' else start_compiled
        return partial(start, candidate.build, result.conditions)

    def _file(self, candidate: Candidate, conditions: Conditions) -> Path:
        """Of a network at a size, written once."""
        key = candidate.name, conditions.shape, conditions.batch_size
        if key not in self.files:
            if candidate.export is None:
                raise UsageError(f'{candidate.name} has no export to ONNX')
            path = self.folder / f'{len(self.files)}.onnx'
            self.progress(
                f'{candidate.name} at {size_in_words(conditions)}: exporting'
            )
            candidate.export(path, conditions)
            self.files[key] = path
        return self.files[key]


def _take_turns(
    entries: Sequence[_Entry],
    conditions: Conditions,
    warm_up: int,
    runs: int,
    progress: Callable[[str], None],
) -> None:
    where = size_in_words(conditions)
    if conditions.on_cpu:
        where += f', threads: {conditions.threads}'
    begin = perf_counter()
    for i in range(-warm_up, runs):
        for result, run in entries:
            sleep(_REST)
            start = perf_counter()
            run()
            seconds = perf_counter() - start
            if i >= 0:
                result.seconds.append(seconds)
        done = i + warm_up + 1
        left = (perf_counter() - begin) / done * (runs - 1 - i)
        what = f'pass {i + 1} of {runs}' if i >= 0 else 'warm-up'
        progress(f'{where}: {what}, about {left:.0f} s left')


class _FusedAttention(TorchDispatchMode):
    """Sees whether torch's fused attention runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen |= 'scaled_dot_product' in func.name()
        return func(*args, **(kwargs or {}))


def hardware_line(conditions: Conditions) -> str:
    """Say what the figures of these conditions were measured on."""
    threads = f', threads: {conditions.threads}' if conditions.on_cpu else ''
    dtype = str(torch.get_default_dtype()).removeprefix('torch.')
    machine, version = machine_line(conditions.device).split('; ')
    return (
        f'{machine}{threads}; {version}; {dtype}, images at a time: '
        f'{conditions.batch_size}'
    )
