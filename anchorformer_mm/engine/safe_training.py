"""Trainings that can be killed, interrupted and resumed."""

import sys
from contextlib import suppress
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from anchorformer_mm.engine.resuming.elastic import beginning, mark_beginning
from anchorformer_mm.engine.resuming.interruption import (
    Interrupted,
    ending_in_order,
)
from anchorformer_mm.engine.resuming.resume_point import (
    ResumePoint,
    newest_resume_point,
    read_resume_point,
    remove_unfinished,
)
from anchorformer_mm.engine.resuming.runner import ResumableRunner

# Each can be given other arguments, or taken out with None, by its name in
# default_hooks.
SAFE_HOOKS = dict(
    non_finite='NonFiniteHook',
    resume='ResumeHook',
    interruption='InterruptionHook',
)


def add_safe_hooks(cfg: Config) -> None:
    """Add the hooks of a safe training to a config, unless it has them.

    mmengine's ``CheckpointHook`` becomes
    :class:`anchorformer_mm.engine.hooks.SafeCheckpointHook`, with the same
    arguments. Hooks of another type, and None, which takes one out, are left
    as they are.
    """
    hooks = dict(cfg.get('default_hooks') or {})
    checkpoint = hooks.get('checkpoint', dict(interval=1))
    plain = ('CheckpointHook', 'mmengine.CheckpointHook')
    if checkpoint is not None and checkpoint.get('type', plain[0]) in plain:
        hooks['checkpoint'] = dict(
            checkpoint, type='anchorformer_mm.SafeCheckpointHook'
        )
    for name, kind in SAFE_HOOKS.items():
        arguments = hooks.get(name, {})
        if arguments is None:
            del hooks[name]
        else:
            kind = f'anchorformer_mm.{kind}'
            hooks[name] = dict(type=kind) | dict(arguments)
    cfg.default_hooks = hooks


def find_resume_point(cfg: Config) -> ResumePoint | None:
    """Choose the checkpoint of a training that is to be resumed.

    For a job that torchrun has started again, that is the newest that it has
    written itself. Else, with ``resume`` and ``load_from`` that one; with
    ``resume`` alone the newest of the work folder that can be read.
    ``resume``, ``load_from`` and the seed of the config are set accordingly:
    data follows from the seed, and is built before mmengine reads the
    checkpoint.

    Raises:
        UsageError: ``load_from``, or every checkpoint there is, is unreadable.
    """
    begin_from = cfg.pop('begin_from', None)
    point = None
    began = beginning(Path(cfg.work_dir))
    if began is not None:
        point = newest_resume_point(cfg, since=began)
    if point is None:
        if not cfg.get('resume'):
            return None
        chosen = cfg.get('load_from')
        if chosen is not None and '://' in chosen:
            return None
        if chosen is None:
            point = newest_resume_point(cfg)
        else:
            point = read_resume_point(Path(chosen))
    if point is None:
        cfg.resume = False
        cfg.load_from = begin_from
        return None
    cfg.resume = True
    cfg.load_from = str(point.path)
    if point.seed is not None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=point.seed)
    return point


def build_runner(cfg: Config, default: type[Runner]) -> Runner:
    """Build the runner that a config names, or the default one."""
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return default.from_cfg(cfg)


def train_safely(cfg: Config) -> None:
    """Train, resume or begin, and end in order when asked to.

    A config with a ``runner_type`` is trained as that runner does it.

    Raises:
        UsageError: There is nothing whole to resume from, the disk is full,
            or a loss or gradient is not finite.
        SystemExit: With 130, 143 or 129, after SIGINT, SIGTERM or SIGHUP.
    """
    if 'runner_type' in cfg:
        cfg.pop('begin_from', None)
        build_runner(cfg, Runner).train()
        return
    add_safe_hooks(cfg)
    point = find_resume_point(cfg)
    mark_beginning(Path(cfg.work_dir))
    with ending_in_order():
        runner = build_runner(cfg, ResumableRunner)
        if is_main_process():
            remove_unfinished(cfg)
        if point is not None and point.warning:
            runner.logger.warning(point.warning)
        try:
            runner.train()
        except Interrupted as error:
            if is_main_process():
                _say_how_to_go_on(error)
            raise SystemExit(error.exit_status) from None


def _say_how_to_go_on(error: Interrupted) -> None:
    what = f'saved {error.saved}' if error.saved else 'saved no checkpoint'
    # There is no terminal any more after SIGHUP.
    with suppress(OSError):
        print(
            f'{error}: {what}; to go on, run the same command with --resume',
            file=sys.stderr,
            flush=True,
        )
