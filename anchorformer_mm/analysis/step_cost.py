"""Where the time of a training step goes."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from time import perf_counter
from unittest.mock import patch

import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper

from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.tables import markdown_table

# The rest of the step: what a model does with the outputs of its parts.
LOSS = 'assignment and loss'
PARTS = (
    'data',
    'data preprocessor',
    'backbone',
    'neck',
    'head',
    LOSS,
    'backward',
    'optimiser',
)
_MODULES = {
    'data_preprocessor': 'data preprocessor',
    'backbone': 'backbone',
    'neck': 'neck',
    'bbox_head': 'head',
    'decode_head': 'head',
    'head': 'head',
}
_METHODS = dict(backward='backward', step='optimiser', zero_grad='optimiser')


@dataclass(frozen=True)
class StepCost:
    """Time of the parts of some training steps.

    Attributes:
        seconds: Of each part, of ``PARTS``, the time in each step.
    """

    seconds: Mapping[str, Sequence[float]]

    def median(self, part: str) -> float:
        """Median time of a part, seconds."""
        return statistics.median(self.seconds[part])

    @property
    def total(self) -> float:
        """Sum of the medians, seconds."""
        return sum(map(self.median, self.seconds))

    def share(self, part: str) -> float:
        """What fraction of the total a part takes."""
        return self.median(part) / self.total


class _Stopwatch:
    """Times parts, each without those that run within it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.running: list[str] = []
        self.since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._charge()
        self.running.append(name)
        try:
            yield
        finally:
            self._charge()
            self.running.pop()

    def _charge(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        now = perf_counter()
        if self.running:
            self.seconds[self.running[-1]] += now - self.since
        self.since = now

    def watch(
        self, owner: object, method: str, part: str
    ) -> AbstractContextManager:
        """Within the result, a method counts as a part."""
        original = getattr(owner, method)

        def timed(*args, **kwargs):
            with self.part(part):
                return original(*args, **kwargs)

        return patch.object(owner, method, timed)


def measure_steps(
    model: BaseModel,
    optim_wrapper: OptimWrapper,
    batches: Iterator,
    *,
    steps: int = 20,
    warm_up: int = 5,
    progress: Callable[[str], None] = print,
) -> StepCost:
    """Train, and time the parts of each step.

    Steps are those of ``model.train_step``. On a GPU each part ends when its
    work there is done, so that a step takes somewhat longer than it would.

    Args:
        model: On its device; is trained.
        optim_wrapper: Of the model's parameters.
        batches: What a loader gives; waiting for it counts as data.
        steps: Timed steps, at least one.
        warm_up: Steps before these.
        progress: Told what is done.

    Raises:
        UsageError: The loss is not finite: such steps do not take the time
            of those that learn.
    """
    device = next(model.parameters()).device
    results: dict[str, list[float]] = {part: [] for part in PARTS}
    model.train()
    for i in range(-warm_up, steps):
        stopwatch = _Stopwatch(device)
        with ExitStack() as stack:
            for name, part in _MODULES.items():
                module = getattr(model, name, None)
                if module is not None:
                    stack.enter_context(
                        stopwatch.watch(module, 'forward', part)
                    )
            for name, part in _METHODS.items():
                stack.enter_context(stopwatch.watch(optim_wrapper, name, part))
            with stopwatch.part('data'):
                batch = next(batches)
            with stopwatch.part(LOSS):
                losses = model.train_step(batch, optim_wrapper)
        loss = losses['loss'].item()
        if not math.isfinite(loss):
            raise UsageError(
                f'the loss is {loss} after {i + warm_up + 1} steps: lower '
                'optim_wrapper.optimizer.lr with --cfg-options'
            )
        progress(f'step {i + 1} of {steps}: loss {loss:.3f}')
        if i >= 0:
            for part, seconds in stopwatch.seconds.items():
                results[part].append(seconds)
    return StepCost(results)


def measure_loader(batches: Iterator, *, skip: int, count: int) -> float:
    """Time a loader whose batches nobody makes use of.

    Args:
        batches: What it gives.
        skip: Batches that are not timed: the workers start, and load ahead.
        count: Timed batches.

    Returns:
        float: Seconds a batch.
    """
    for _ in range(skip):
        next(batches)
    start = perf_counter()
    for _ in range(count):
        next(batches)
    return (perf_counter() - start) / count


def step_table(cost: StepCost) -> str:
    """Write the cost of a step as a table of Markdown."""
    lines = []
    for part, seconds in cost.seconds.items():
        least, most = (1e3 * f(seconds) for f in (min, max))
        lines.append(
            [
                part,
                f'{1e3 * cost.median(part):.1f}',
                f'{least:.1f} to {most:.1f}',
                f'{100 * cost.share(part):.1f} %',
            ]
        )
    lines.append(['step', f'{1e3 * cost.total:.1f}', '', '100.0 %'])
    return markdown_table(['part', 'median (ms)', 'range', 'share'], lines)
