"""Trainings in processes of their own, ended at chosen moments."""

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
from uuid import uuid4

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from anchorformer_mm.registry import HOOKS

STAGES = ('setting up', 'training', 'evaluation', 'checkpoint')
# What a process tells: its stage, the iteration, how many evaluations and
# checkpoints it has begun, the milliseconds of its last evaluation, those at
# its first step, and how often torchrun started it again. Without a lock,
# which a killed process would keep.
_shared = multiprocessing.RawArray(c_long, 7)
# The processes that train together, and which of them have trained, by rank.
MAX_PROCESSES = 64
_trainers = multiprocessing.RawArray(c_long, MAX_PROCESSES)
_trained = multiprocessing.RawArray(c_long, MAX_PROCESSES)
_POLL_SECONDS = 0.001


@HOOKS.register_module()
class MomentHook(Hook):
    """Tell another process what the training is doing.

    Of processes that train together, the first one does.
    """

    priority = 'LOWEST'

    def before_run(self, runner: Runner) -> None:
        self.told = _shared if is_main_process() else [0] * len(_shared)

    def before_train_iter(self, runner: Runner, **kwargs) -> None:
        self.told[0], self.told[1] = 1, runner.iter + 1
        if not self.told[5]:
            self.told[5] = int(time.monotonic() * 1000)

    def before_val(self, runner: Runner) -> None:
        self.told[2] += 1
        self.told[0] = 2
        self._began = time.monotonic()

    def after_val_epoch(self, runner: Runner, **kwargs) -> None:
        self.told[4] = int((time.monotonic() - self._began) * 1000)

    def after_val(self, runner: Runner) -> None:
        self.told[0] = 1

    def before_save_checkpoint(self, runner: Runner, **kwargs) -> None:
        self.told[3] += 1
        self.told[0] = 3


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
    """A training in processes of its own.

    One process has a group of its own. Several belong to a job of torchrun,
    which starts them again once if one of them dies.

    Args:
        cfg: What :func:`anchorformer_mm.engine.launch.run` takes.
        log: File that takes its output.
        processes: That train together.
    """

    def __init__(self, cfg: Config, log: Path, processes: int = 1) -> None:
        _shared[:] = [0] * len(_shared)
        _trainers[:] = _trained[:] = [0] * MAX_PROCESSES
        # Forked, so that libraries are imported once for all.
        context = multiprocessing.get_context('fork')
        self.cfg, self.log, self.processes = cfg, log, processes
        target, args = _train, (cfg, log)
        if processes > 1:
            target, args = _train_together, (cfg, log, processes)
        self.process = context.Process(target=target, args=args)
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
        self._require_success()
        return self.extent()

    def extent(self) -> Extent:
        """Return what there was up to now."""
        seconds = time.monotonic() - (_shared[5] / 1000 or self.started)
        return Extent(seconds, _shared[2], _shared[3], _shared[4] / 1000)

    def kill_when(
        self, reached: Callable[[], bool], rank: int = 0
    ) -> str | None:
        """Kill a process and its workers as soon as a condition holds.

        Args:
            reached: The condition.
            rank: Which of the processes that train together.

        Returns:
            str | None: The moment; None if the training ended before.

        Raises:
            RuntimeError: It ended with an error before.
        """
        if not self._wait_for(lambda: reached() and _trainers[rank]):
            return None
        moment = _moment()
        if self.processes > 1:
            _kill(_trainers[rank])
            if _trained[rank]:
                # torch would wait for it for ever.
                self._kill()
                self.process.join()
                return None
            # One that had ended takes a signal, too, until it is reaped.
            killed = self._wait_for(lambda: _shared[6])
            return f'{moment}, process {rank}' if killed else None
        self._kill()
        self.process.join()
        if self.process.exitcode == -signal.SIGKILL:
            return moment
        self._require_success()
        return None

    def interrupt_when(self, reached: Callable[[], bool]) -> str | None:
        """Ask one process and its workers to end, as a cluster does.

        Args:
            reached: The condition.

        Returns:
            str | None: The moment; None if the training ended before.

        Raises:
            RuntimeError: It ended with an error, before or on the signal.
        """
        if not self._wait_for(lambda: reached() and _shared[5]):
            return None
        moment = _moment()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.join()
        if self.process.exitcode == 0:
            return None
        if self.process.exitcode != 128 + signal.SIGTERM:
            raise RuntimeError(
                f'a training ended with {self.process.exitcode} on SIGTERM'
            )
        return f'SIGTERM in {moment}'

    def _wait_for(self, reached: Callable[[], bool]) -> bool:
        """Wait for a condition; False if the training ends before."""
        while not reached():
            if not self.process.is_alive():
                self._require_success()
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _require_success(self) -> None:
        if self.process.exitcode:
            end = '\n'.join(self.log.read_text().splitlines()[-15:])
            raise RuntimeError(
                f'a training ended with {self.process.exitcode}:\n{end}'
            )

    def _kill(self) -> None:
        for process in {self.process.pid, *filter(None, _trainers)}:
            _kill(process)


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
    """Choose when to end one: anywhere, within a checkpoint, an evaluation.

    Args:
        draw: Random numbers.
        turn: 1 for within a checkpoint, 2 for within an evaluation, others
            for anywhere.
        extent: Of the unbroken training.
    """
    if turn == 1 and extent.checkpoints:
        number = draw.randint(1, extent.checkpoints)
        return within(3, number, draw.uniform(0, 0.02))
    if turn == 2 and extent.evaluations:
        number = draw.randint(1, extent.evaluations)
        return within(2, number, draw.uniform(0, extent.evaluation_seconds))
    return within(1, 1, draw.uniform(0, extent.seconds))


def _moment() -> str:
    return f'{STAGES[_shared[0]]}, iteration {_shared[1]}'


def _kill(process: int) -> None:
    """Kill a process and those of its group, if they are there."""
    # Before it has a group of its own, it has no workers either.
    for kill in (os.kill, os.killpg):
        with suppress(ProcessLookupError):
            kill(process, signal.SIGKILL)


def _train(cfg: Config, log: Path) -> None:
    os.setsid()
    _shared[6] = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))
    rank = int(os.environ.get('RANK', 0))
    _trainers[rank] = os.getpid()
    _write_to(log)
    from anchorformer_mm.engine import launch
    from anchorformer_mm.utils.errors import UsageError

    try:
        launch.run(cfg, 'train')
    except UsageError as error:
        sys.exit(f'error: {error}')
    _trained[rank] = 1


def _train_together(cfg: Config, log: Path, processes: int) -> None:
    """Train as torchrun does, without loading libraries anew."""
    _write_to(log)
    # Its store would hand on the addresses of the dead, see dist_run.sh.
    os.environ['TORCH_DISABLE_SHARE_RDZV_TCP_STORE'] = '1'
    launch_job = elastic_launch(
        LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=str(uuid4()),
            rdzv_backend='c10d',
            rdzv_endpoint='127.0.0.1:0',
            max_restarts=1,
            start_method='fork',
        ),
        _train,
    )
    launch_job(cfg, log)


def _write_to(log: Path) -> None:
    with log.open('a') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
