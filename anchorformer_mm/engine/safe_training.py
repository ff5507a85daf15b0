"""Trainings that can be killed, interrupted and resumed."""

import sys
from contextlib import suppress
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import all_gather_object, is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from anchorformer_mm.engine.processes import is_first_process
from anchorformer_mm.engine.resuming.config_changes import config_changes
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
from anchorformer_mm.engine.resuming.work_folder import (
    last_beginning,
    lock,
    mark_beginning,
)
from anchorformer_mm.utils.errors import UsageError

# Each can be given other arguments, or taken out with None, by its name in
# default_hooks.
SAFE_HOOKS = dict(
    non_finite='NonFiniteHook',
    resume='ResumeHook',
    interruption='InterruptionHook',
)
# Of a config, told in one warning.
MAX_CHANGES = 20


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
        UsageError: ``load_from``, or every checkpoint there is, is
            unreadable, or is older than another training in the folder.
    """
    begin_from = cfg.pop('begin_from', None)
    began = last_beginning(Path(cfg.work_dir))
    point = None
    if began is not None and began.is_ours:
        point = newest_resume_point(cfg, since=began.time)
    if point is None:
        if not cfg.get('resume'):
            return None
        chosen = cfg.get('load_from')
        if chosen is not None and '://' in chosen:
            return None
        if chosen is not None:
            point = read_resume_point(Path(chosen))
        else:
            point = newest_resume_point(cfg, since=began.time if began else 0)
            if point is None and began is not None:
                _refuse_older(cfg)
    if point is None:
        cfg.resume = False
        cfg.load_from = begin_from
        return None
    cfg.resume = True
    cfg.load_from = str(point.path)
    point = point._replace(warning=_all_warnings(point, cfg))
    if point.seed is not None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=point.seed)
    return point


def _refuse_older(cfg: Config) -> None:
    older = newest_resume_point(cfg)
    if older is not None:
        raise UsageError(
            f'{older.path} is of before the last training in {cfg.work_dir} '
            'began, which has saved nothing: to go on from it all the same, '
            f'--resume {older.path}; to begin, leave --resume out'
        )


def _all_warnings(point: ResumePoint, cfg: Config) -> str:
    """Tell what was wrong with newer checkpoints, and what was changed."""
    warnings = [point.warning] if point.warning else []
    seed = (cfg.get('randomness') or {}).get('seed')
    if None not in (seed, point.seed) and seed != point.seed:
        warnings.append(
            f'randomness.seed={seed} is of no use: the run goes on with '
            f'{point.seed}'
        )
    changes = config_changes(point.config, cfg.pretty_text)
    if changes:
        shown = '\n  '.join(changes[:MAX_CHANGES])
        more = len(changes) - MAX_CHANGES
        warnings.append(
            f'the config differs from that of {point.path}:\n  {shown}\n'
            + (f'  and {more} more\n' if more > 0 else '')
            + 'The state of the optimiser and of the schedules goes on as it '
            'was, rates and lengths included'
        )
    return '\n'.join(warnings)


def _enter(cfg: Config) -> ResumePoint | None:
    """Take the work folder, and choose what to go on from."""
    work_dir = Path(cfg.work_dir)
    is_first = is_first_process(cfg.get('launcher', 'none'))
    if is_first:
        lock(work_dir)
    began = last_beginning(work_dir)
    goes_on = cfg.get('resume') and not cfg.get('load_from')
    point = find_resume_point(cfg)
    _agree(point)
    started_again = began is not None and began.is_ours
    if is_first and not started_again and not (goes_on and point):
        mark_beginning(work_dir)
    return point


def _agree(point: ResumePoint | None) -> None:
    """Let processes that train together go on from the same checkpoint.

    Raises:
        UsageError: They see different ones.
    """
    own = None if point is None else point.path.name
    seen = all_gather_object(own)
    if any(name != seen[0] for name in seen):
        raise UsageError(
            'the processes would go on from different checkpoints '
            f'({", ".join(map(str, seen))}): all machines need the same work '
            'folder, on a disk that they share'
        )


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
        begin_from = cfg.pop('begin_from', None)
        chosen = cfg.get('load_from') or find_latest_checkpoint(cfg.work_dir)
        if cfg.get('resume') and chosen is None:
            cfg.resume, cfg.load_from = False, begin_from
        if cfg.get('resume') and Path(chosen).is_file():
            # mmengine would run the config of an old one.
            read_resume_point(Path(chosen))
        build_runner(cfg, Runner).train()
        return
    add_safe_hooks(cfg)
    point = _enter(cfg)
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
