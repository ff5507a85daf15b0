"""Kill trainings, resume them, and compare them with the unbroken one."""

import copy
import random
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
    cfg: Config, folder: Path, kills: int, seed: int = 0
) -> list[Kill]:
    """Train a config once as it is, and often killed with SIGKILL.

    Each of those is killed once: the first, fourth, ... anywhere, the second,
    fifth, ... within a checkpoint, the third, sixth, ... within an
    evaluation. Then it is resumed, and ends.

    Args:
        cfg: From :func:`anchorformer_mm.engine.launch.load_config`.
        folder: Takes the trainings; must be empty or not there.
        kills: How many.
        seed: Of the moments.

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
    extent = Training(_config(cfg, folder / 'unbroken'), _log(folder)).wait()
    print(
        f'unbroken: {extent.seconds:.1f} s, {extent.evaluations} evaluations, '
        f'{extent.checkpoints} checkpoints',
        file=sys.stderr,
    )
    results = []
    for number in range(kills):
        run = folder / f'killed_{number + 1}'
        moment = _kill(cfg, run, folder, draw, number, extent)
        unfinished = len(remove_unfinished(run)) if run.exists() else 0
        resumed = _config(cfg, run, resume=True)
        Training(resumed, _log(folder)).wait()
        difference = runs_difference(folder / 'unbroken', run)
        results.append(Kill(moment, unfinished, difference))
        print(
            f'{number + 1}/{kills}: {moment}: {difference or "equal"}',
            file=sys.stderr,
        )
    return results


def _kill(
    cfg: Config,
    run: Path,
    folder: Path,
    draw: random.Random,
    turn: int,
    extent: Extent,
) -> str:
    for _ in range(_ATTEMPTS):
        training = Training(_config(cfg, run), _log(folder))
        moment = training.kill_when(random_moment(draw, turn, extent))
        if moment is not None:
            return moment
        # It ended before: go on from its end would prove nothing.
        run.rename(folder / f'ended_{turn + 1}_{draw.randrange(10**9)}')
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
