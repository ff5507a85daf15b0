"""Kill trainings, resume them, and compare them with the unbroken one."""

import copy
import random
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config

from anchorformer_mm.engine.resuming.differences import runs_difference
from anchorformer_mm.engine.resuming.killing import (
    Extent,
    Training,
    random_moment,
)
from anchorformer_mm.engine.resuming.resume_point import remove_unfinished
from anchorformer_mm.utils.errors import UsageError

# A training that was faster than the unbroken one ended before its moment.
_ATTEMPTS = 20
_TURNS = (signal.SIGKILL,) * 3 + (signal.SIGTERM,)


class Kill(NamedTuple):
    """A training that was killed once.

    Attributes:
        moment: What it was doing.
        unfinished: Files that were not whole.
        difference: To the unbroken one; None if there is none.
    """

    moment: str
    unfinished: int
    difference: str | None


def check_resuming(
    cfg: Config, folder: Path, kills: int, seed: int = 0, processes: int = 1
) -> list[Kill]:
    """Train a config once as it is, and often killed or interrupted.

    Each of those is killed once with SIGKILL: the first, fifth, ... anywhere,
    the second, sixth, ... within a checkpoint, the third, seventh, ... within
    an evaluation; the fourth, eighth, ... is sent a SIGTERM anywhere. Then it
    is resumed, and ends. Of processes that train together, one is killed, and
    torchrun starts all of them again.

    Args:
        cfg: From :func:`anchorformer_mm.engine.launch.load_config`.
        folder: Takes the trainings; must be empty or not there.
        kills: How many.
        seed: Of the moments, and of which process is killed.
        processes: That train together.

    Returns:
        list[Kill]: One for each.

    Raises:
        UsageError: The folder is not empty.
        RuntimeError: A training ended with an error.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f'{folder} is not empty: choose another --work-dir')
    folder.mkdir(parents=True, exist_ok=True)
    scope = cfg.get('default_scope', 'mmengine')
    if scope != 'mmengine':
        # Once, for all the processes that are forked.
        utils = import_module(f'{scope}.utils')
        utils.register_all_modules(init_default_scope=False)
    # Threads of this process would not be in those that it forks.
    torch.set_num_threads(1)
    draw = random.Random(seed)
    unbroken = _config(cfg, folder / 'unbroken')
    extent = Training(unbroken, _log(folder), processes).wait()
    print(
        f'unbroken: {extent.seconds:.1f} s, {extent.evaluations} evaluations, '
        f'{extent.checkpoints} checkpoints',
        file=sys.stderr,
    )
    results = []
    for number in range(kills):
        run = folder / f'killed_{number + 1}'
        moment, unfinished = _kill_and_resume(
            cfg, run, draw, number, extent, processes
        )
        difference = runs_difference(folder / 'unbroken', run)
        results.append(Kill(moment, unfinished, difference))
        print(
            f'{number + 1}/{kills}: {moment}: {difference or "equal"}',
            file=sys.stderr,
        )
    return results


def _kill_and_resume(
    cfg: Config,
    run: Path,
    draw: random.Random,
    turn: int,
    extent: Extent,
    processes: int,
) -> tuple[str, int]:
    """Return the moment, and how many files were not whole."""
    for _ in range(_ATTEMPTS):
        training = Training(_config(cfg, run), _log(run.parent), processes)
        reached = random_moment(draw, turn % len(_TURNS), extent)
        if processes == 1 and _TURNS[turn % len(_TURNS)] == signal.SIGTERM:
            moment = training.interrupt_when(reached)
        else:
            moment = training.kill_when(reached, draw.randrange(processes))
        if moment is None:
            # It ended before: go on from its end would prove nothing.
            run.rename(run.with_name(f'ended_{turn}_{draw.randrange(10**9)}'))
            # What made it faster may last.
            extent = training.extent()
            continue
        unfinished = 0
        if processes == 1:
            unfinished = len(remove_unfinished(training.cfg))
            resumed = _config(cfg, run, resume=True)
            training = Training(resumed, _log(run.parent))
        training.wait()
        return moment, unfinished
    raise RuntimeError(f'no training could be killed in {_ATTEMPTS} attempts')


def _config(cfg: Config, work_dir: Path, resume: bool = False) -> Config:
    cfg = copy.deepcopy(cfg)
    cfg.work_dir = str(work_dir)
    cfg.resume = resume
    cfg.custom_hooks = [
        *(cfg.get('custom_hooks') or []),
        dict(type='anchorformer_mm.MomentHook'),
    ]
    return cfg


def _log(folder: Path) -> Path:
    return folder / 'output.log'
