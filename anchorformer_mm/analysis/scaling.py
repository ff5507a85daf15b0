"""How time and memory of attention grow with the tokens.

Time is the median of passes that the kinds of attention take in turn, so that
a disturbance of the machine meets all alike. A cell is a part, a kind and a
number of tokens; what would cost too much is left out, and says why.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import numpy as np
import torch

from anchorformer_mm.analysis.peak_memory import cpu_memory, cuda_memory
from anchorformer_mm.analysis.scaling_networks import Settings, start
from anchorformer_mm.utils.errors import UsageError

# Exponents are fitted from here on: with few tokens the fixed costs count.
FIT_FROM = 1024
# The first pass sets things up: it counts only where that cannot matter.
_LONG = 2.0
_GIB = 2**30


@dataclass
class Cell:
    """What was measured of one kind of attention on so many tokens.

    Attributes:
        part: Layer or backbone.
        kind: Of attention.
        tokens: Their number.
        memory: Peak of a pass beyond weights and inputs, bytes.
        seconds: Time of each pass.
        reason: Why it was left out, if it was.
    """

    part: str
    kind: str
    tokens: int
    memory: int | None = None
    seconds: list[float] = field(default_factory=list)
    reason: str | None = None

    @property
    def latency(self) -> float:
        """Median time of a pass, seconds."""
        return statistics.median(self.seconds)

    @property
    def label(self) -> str:
        return f'{self.part}, {self.kind}, {self.tokens:,} tokens'


@dataclass(frozen=True)
class Budget:
    """What a cell may cost.

    Args:
        seconds: Of a pass.
        gib: Memory of a pass, GiB.

    Raises:
        UsageError: A value is not positive.
    """

    seconds: float = 60.0
    gib: float = 16.0

    def __post_init__(self) -> None:
        for name in ('seconds', 'gib'):
            if not getattr(self, name) > 0:
                raise UsageError(
                    f'max_{name} must be > 0, got {getattr(self, name)}'
                )

    def refusal(self, before: Sequence[Cell], tokens: int) -> str | None:
        """Why a cell is left out, judged by the sizes before; None if not.

        Args:
            before: Cells of the same part and kind, by rising tokens.
            tokens: Of the cell.
        """
        if not before:
            return None
        last = before[-1]
        if last.reason is not None:
            return f'{last.tokens:,} tokens were left out'
        seconds = _expected(before, tokens, lambda cell: cell.latency)
        if seconds > self.seconds:
            return (
                f'expected to take {seconds:.0f} s a pass, more than '
                f'{self.seconds:g} s'
            )
        gib = _expected(before, tokens, lambda cell: cell.memory) / _GIB
        if gib > self.gib:
            return f'expected to take {gib:.1f} GiB, more than {self.gib:g}'
        return None


def _expected(
    before: Sequence[Cell], tokens: int, value: Callable[[Cell], float]
) -> float:
    """Go on as from the last size but one to the last.

    Linear at least and quadratic at most, quadratic where there is one size.
    """
    last = before[-1]
    exponent = 2.0
    if len(before) > 1 and min(value(before[-2]), value(last)) > 0:
        growth = math.log(value(last) / value(before[-2]))
        steps = math.log(last.tokens / before[-2].tokens)
        exponent = min(max(growth / steps, 1.0), 2.0)
    return value(last) * (tokens / last.tokens) ** exponent


def measure_scaling(
    settings: Settings,
    *,
    parts: Sequence[str],
    kinds: Sequence[str],
    tokens: Sequence[int],
    budget: Budget | None = None,
    runs: int = 3,
    done: Iterable[Cell] = (),
    save: Callable[[list[Cell]], None] = lambda cells: None,
    progress: Callable[[str], None] = print,
) -> list[Cell]:
    """Measure kinds of attention over numbers of tokens.

    Args:
        settings: What runs, and how.
        parts: Layers, backbones or both, see
            :data:`~anchorformer_mm.analysis.scaling_networks.PARTS`.
        kinds: See :data:`~anchorformer_mm.analysis.scaling_networks.KINDS`.
        tokens: Their numbers.
        budget: What a cell may cost.
        runs: Timed passes of a cell; fewer where one takes longer than the
            budget after all. The first pass is not timed, unless it takes 2
            seconds or more.
        done: Cells of an earlier run with these settings; what is complete
            is not measured again.
        save: Given all cells so far, after each.
        progress: Told what is done, and what is left out.

    Returns:
        list[Cell]: By part, tokens and kind.

    Raises:
        UsageError: An argument is out of its range.
    """
    for name, value in (('runs', runs), ('tokens', min(tokens, default=0))):
        if value < 1:
            raise UsageError(f'{name} must be >= 1, got {value}')
    budget = budget or Budget()
    known = {(c.part, c.kind, c.tokens): c for c in done if c.reason is None}
    cells: list[Cell] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        for part in parts:
            for count in sorted(set(tokens)):
                group = []
                for kind in kinds:
                    before = [
                        c for c in cells if (c.part, c.kind) == (part, kind)
                    ]
                    cell = known.get((part, kind, count))
                    cell = cell or Cell(part, kind, count)
                    if not cell.seconds:
                        cell.reason = budget.refusal(before, count)
                        _take_memory(settings, cell, progress)
                    group.append(cell)
                    # Not yet timed ones are begun anew when resumed.
                    save([*cells, *group])
                _take_times(settings, group, runs, budget.seconds, progress)
                cells += group
                save(cells)
    finally:
        torch.set_num_threads(threads)
    return cells


def _take_memory(
    settings: Settings, cell: Cell, progress: Callable[[str], None]
) -> None:
    if cell.reason is None and cell.memory is None:
        try:
            cell.memory = _memory(settings, cell)
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            cell.reason = f'memory ran out ({type(error).__name__})'
    if cell.reason is not None:
        progress(f'{cell.label}: left out, {cell.reason}')
    else:
        progress(f'{cell.label}: {cell.memory / 2**20:.1f} MiB')


def _memory(settings: Settings, cell: Cell) -> int:
    begin = partial(start, settings, cell.part, cell.kind, cell.tokens)
    if torch.device(settings.device).type == 'cpu':
        return cpu_memory(begin, settings.threads)
    run = begin()
    run()
    return cuda_memory(run, settings.device)


def _take_times(
    settings: Settings,
    group: Sequence[Cell],
    runs: int,
    longest: float,
    progress: Callable[[str], None],
) -> None:
    """Pass by pass, the cells in turn; after too long a pass there is none."""
    passes = [
        (cell, start(settings, cell.part, cell.kind, cell.tokens))
        for cell in group
        if cell.reason is None and not cell.seconds
    ]
    first = True
    while passes := [
        (cell, run)
        for cell, run in passes
        if len(cell.seconds) < runs and max(cell.seconds, default=0) <= longest
    ]:
        for cell, run in passes:
            begin = perf_counter()
            run()
            seconds = perf_counter() - begin
            if not first or seconds >= _LONG:
                cell.seconds.append(seconds)
                progress(
                    f'{cell.label}: pass {len(cell.seconds)} of {runs}, '
                    f'{1e3 * seconds:.1f} ms'
                )
        first = False


def fit_exponent(
    cells: Iterable[Cell], value: Callable[[Cell], float | None]
) -> float | None:
    """Exponent of the tokens: a line through the logarithms.

    Least squares over the cells of ``FIT_FROM`` tokens or more.

    Args:
        cells: Of one part and kind.
        value: What grows; cells without it, or with 0, do not count.

    Returns:
        float | None: None if fewer than two cells count.
    """
    points = [
        (cell.tokens, value(cell))
        for cell in cells
        if cell.tokens >= FIT_FROM and cell.reason is None and value(cell)
    ]
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])
