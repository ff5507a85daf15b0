"""Trainings in processes of their own, killed at chosen moments."""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from ctypes import c_long
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from anchorformer_mm.registry import HOOKS

STAGES = ('setting up', 'training', 'evaluation', 'checkpoint')
# What a process tells: its stage, the iteration, how many evaluations and
# checkpoints it has begun, the milliseconds of its last evaluation, and those
# at its first step. Without a lock, which a killed process would keep.
_shared = multiprocessing.RawArray(c_long, 6)
_POLL_SECONDS = 0.001


@HOOKS.register_module()
class MomentHook(Hook):
    """Tell another process what the training is doing."""

    priority = 'LOWEST'

    def before_train_iter(self, runner: Runner, **kwargs) -> None:
        _shared[0], _shared[1] = 1, runner.iter + 1
        if not _shared[5]:
            _shared[5] = int(time.monotonic() * 1000)

    def before_val(self, runner: Runner) -> None:
        _shared[2] += 1
        _shared[0] = 2
        self._began = time.monotonic()

    def after_val_epoch(self, runner: Runner, **kwargs) -> None:
        _shared[4] = int((time.monotonic() - self._began) * 1000)

    def after_val(self, runner: Runner) -> None:
        _shared[0] = 1

    def before_save_checkpoint(self, runner: Runner, **kwargs) -> None:
        _shared[3] += 1
        _shared[0] = 3


class Extent(NamedTuple):
    """What there is in a training to be killed in.

    Attributes:
        seconds: From its first step to its end.
        evaluations: How many.
        checkpoints: How many.
        evaluation_seconds: Of the last one.
    """

    seconds: float
    evaluations: int
    checkpoints: int
    evaluation_seconds: float


class Training:
    """A training that runs in a process group of its own.

    Args:
        cfg: What :func:`anchorformer_mm.engine.launch.run` takes.
        log: File that takes its output.
    """

    def __init__(self, cfg: Config, log: Path) -> None:
        _shared[:] = [0] * len(_shared)
        # Forked, so that libraries are imported once for all.
        context = multiprocessing.get_context('fork')
        self.log = log
        self.process = context.Process(target=_train, args=(cfg, log))
        self.started = time.monotonic()
        self.process.start()

    def wait(self) -> Extent:
        """Wait for the end; return what there was.

        Raises:
            RuntimeError: It ended with an error; with the end of its output.
        """
        try:
            self.process.join()
        except BaseException:
            # It would outlive this process, as it has a group of its own.
            self._kill()
            raise
        if self.process.exitcode:
            end = '\n'.join(self.log.read_text().splitlines()[-15:])
            raise RuntimeError(
                f'a training ended with {self.process.exitcode}:\n{end}'
            )
        seconds = time.monotonic() - (_shared[5] / 1000 or self.started)
        return Extent(seconds, _shared[2], _shared[3], _shared[4] / 1000)

    def kill_when(self, reached: Callable[[], bool]) -> str | None:
        """Kill it, and all of its workers, as soon as a condition holds.

        Returns:
            str | None: The moment; None if the training ended before.
        """
        while not reached():
            if not self.process.is_alive():
                return None
            time.sleep(_POLL_SECONDS)
        self._kill()
        self.process.join()
        if self.process.exitcode != -signal.SIGKILL:
            return None
        return f'{STAGES[_shared[0]]}, iteration {_shared[1]}'

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            # Before it has a group of its own, it has no workers either.
            os.kill(self.process.pid, signal.SIGKILL)
            os.killpg(self.process.pid, signal.SIGKILL)


def within(kind: int, number: int, seconds: float) -> Callable[[], bool]:
    """Make a condition that holds this long after something began.

    Args:
        kind: 1 for an iteration, 2 for an evaluation, 3 for a checkpoint.
        number: Which of them, from 1.
        seconds: How long after.
    """
    begun: list[float] = []

    def reached() -> bool:
        if not begun and _shared[kind] >= number:
            begun.append(time.monotonic())
        return bool(begun) and time.monotonic() >= begun[0] + seconds

    return reached


def random_moment(
    draw: random.Random, turn: int, extent: Extent
) -> Callable[[], bool]:
    """Choose when to kill: anywhere, within a checkpoint, an evaluation.

    Args:
        draw: Random numbers.
        turn: Which of the three it is the turn of, modulo 3.
        extent: Of the unbroken training.
    """
    if turn % 3 == 1 and extent.checkpoints:
        number = draw.randint(1, extent.checkpoints)
        return within(3, number, draw.uniform(0, 0.02))
    if turn % 3 == 2 and extent.evaluations:
        number = draw.randint(1, extent.evaluations)
        return within(2, number, draw.uniform(0, extent.evaluation_seconds))
    return within(1, 1, draw.uniform(0, extent.seconds))


def _train(cfg: Config, log: Path) -> None:
    os.setsid()
    with log.open('a') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from anchorformer_mm.engine import launch
    from anchorformer_mm.utils.errors import UsageError

    try:
        launch.run(cfg, 'train')
    except UsageError as error:
        sys.exit(f'error: {error}')
