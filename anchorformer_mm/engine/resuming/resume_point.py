"""Where a training goes on: its newest checkpoint that can be read."""

import re
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

from anchorformer_mm.utils.checkpoint import read_checkpoint
from anchorformer_mm.utils.errors import UsageError

LAST_CHECKPOINT = 'last_checkpoint'
INTERRUPTED = 'interrupted.pth'
# What mmengine's Runner.resume reads.
_NEEDED = ('meta', 'state_dict', 'message_hub')


class ResumePoint(NamedTuple):
    """A checkpoint to go on from.

    Attributes:
        path: Its file.
        seed: Seed of the run that wrote it.
        warning: What was wrong with newer ones; '' if this is the newest.
        config: Text of that run's config.
    """

    path: Path
    seed: int | None
    warning: str = ''
    config: str = ''


def checkpoint_folder(cfg: Config) -> Path:
    """Folder of a config's checkpoints, as mmengine derives it."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if hook.get('out_dir') is None:
        return Path(cfg.work_dir)
    return Path(hook['out_dir']) / Path(cfg.work_dir).name


def checkpoint_pattern(
    template: str | None = None, best: bool = False
) -> re.Pattern[str]:
    """Describe the file names of a training's checkpoints.

    Args:
        template: ``filename_tmpl`` of the hook; None for mmengine's.
        best: Also those of the best ones.
    """
    numbered = r'(epoch|iter)_\d+\.pth'
    if template:
        before, _, after = template.partition('{}')
        numbered = rf'{re.escape(before)}\d+{re.escape(after)}'
    if best:
        numbered = rf'(best_[^/]+_)?{numbered}'
    return re.compile(f'({numbered}|{re.escape(INTERRUPTED)})')


def remove_unfinished(cfg: Config) -> list[Path]:
    """Remove what a killed training left of files that it was writing.

    Returns:
        list[Path]: The removed files.
    """
    whole = checkpoint_pattern(_template(cfg), best=True)
    found = [
        path
        for folder in dict.fromkeys(
            [Path(cfg.work_dir), checkpoint_folder(cfg)]
        )
        if folder.is_dir()
        for path in folder.iterdir()
        if path.is_file() and _is_unfinished(path.name, whole)
    ]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def _is_unfinished(name: str, whole: re.Pattern[str]) -> bool:
    """Whether utils.files.replacing gave a checkpoint this name meanwhile."""
    match = re.fullmatch(r'\.(.+)\.\d+(\.[^.\d]+|)', name)
    if match is None:
        return False
    name = match[1] + match[2]
    return name == LAST_CHECKPOINT or whole.fullmatch(name) is not None


def newest_resume_point(cfg: Config, since: int = 0) -> ResumePoint | None:
    """Find the newest whole checkpoint of a config's work folder.

    First the one that ``last_checkpoint`` names, then the others, the last
    written first.

    Args:
        cfg: Of the training.
        since: Checkpoints from before do not count; in nanoseconds.

    Returns:
        ResumePoint | None: None if there is no checkpoint at all.

    Raises:
        UsageError: There are checkpoints, and none can be read.
    """
    problems = []
    for path in _candidates(cfg):
        if since and path.is_file() and path.stat().st_mtime_ns < since:
            continue
        try:
            point = read_resume_point(path)
        except UsageError as error:
            problems.append(str(error))
            continue
        if problems:
            warning = f'{"; ".join(problems)}: going on from {path} instead'
            point = point._replace(warning=warning)
        return point
    if problems:
        raise UsageError(
            'no checkpoint to resume from can be read:\n  '
            + '\n  '.join(problems)
            + '\nTo start anew, remove these, or choose another --work-dir'
        )
    return None


def _candidates(cfg: Config) -> list[Path]:
    folder = checkpoint_folder(cfg)
    pattern = checkpoint_pattern(_template(cfg))
    found = []
    if folder.is_dir():
        found = [p for p in folder.iterdir() if pattern.fullmatch(p.name)]
        found.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    named = Path(cfg.work_dir) / LAST_CHECKPOINT
    name = named.read_text().strip() if named.is_file() else ''
    if name:
        # Of this folder, which may have been moved or copied.
        last = folder / Path(name).name
        found = [last, *(p for p in found if p.name != last.name)]
    return found


def _template(cfg: Config) -> str | None:
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    return hook.get('filename_tmpl')


def read_resume_point(path: Path) -> ResumePoint:
    """Read a checkpoint as a whole, and its seed.

    Raises:
        UsageError: It is not there, cannot be read or resumed without running
            code from it, or lacks what resuming needs.
    """
    checkpoint = read_checkpoint(path)
    missing = [name for name in _NEEDED if name not in checkpoint]
    if missing:
        raise UsageError(
            f'{path} is not a checkpoint to resume from: it lacks '
            f'{", ".join(missing)}'
        )
    meta = checkpoint['meta']
    if not isinstance(meta, dict) or not isinstance(meta.get('cfg', ''), str):
        raise UsageError(
            f'{path} is not a checkpoint to resume from: its meta is not one '
            'of mmengine'
        )
    if 'config' in meta:
        # As mmcv 1.x wrote it; mmengine would run it, as it does configs.
        raise UsageError(
            f"{path} has code in its meta['config']: it is not resumed from"
        )
    return ResumePoint(path, meta.get('seed'), config=meta.get('cfg', ''))
