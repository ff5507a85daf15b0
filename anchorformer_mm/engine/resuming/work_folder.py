"""A work folder has one training at a time, and remembers when it began."""

import os
from pathlib import Path
from typing import NamedTuple

from anchorformer_mm.engine.processes import restarts
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import replacing

try:
    import fcntl
except ImportError:
    # Windows has none.
    fcntl = None

BEGINNING = '.beginning'
LOCK = '.lock'
# Held until the process ends; closing a file would give its lock away.
_locks: dict[tuple[int, Path], int] = {}


class Beginning(NamedTuple):
    """When the last training began in a folder, rather than went on.

    Attributes:
        time: In nanoseconds, by the clock of the folder's disk.
        job: Of torchrun; '' without.
    """

    time: int
    job: str

    @property
    def is_ours(self) -> bool:
        """Whether torchrun has started this job's processes again since."""
        return bool(restarts()) and self.job == _job()


def mark_beginning(work_dir: Path) -> None:
    """Write down that a training begins in a folder."""
    with replacing(work_dir / BEGINNING) as path:
        path.touch()
        # Not the time of the file, which a copy of the folder has not.
        path.write_text(f'{path.stat().st_mtime_ns} {_job()}')


def last_beginning(work_dir: Path) -> Beginning | None:
    """Return when a training began in a folder last; None if none did."""
    try:
        time, job = (work_dir / BEGINNING).read_text().split(' ', 1)
        return Beginning(int(time), job)
    except (FileNotFoundError, ValueError):
        return None


def lock(work_dir: Path) -> None:
    """Keep other trainings out of a folder until this process ends.

    Disks that know no locks do without.

    Raises:
        UsageError: Another training is in it.
    """
    holder = os.getpid(), work_dir.resolve()
    if fcntl is None or holder in _locks:
        return
    work_dir.mkdir(parents=True, exist_ok=True)
    file = os.open(work_dir / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        # Unlike flock, it is not handed on to the loaders' workers, which
        # live on for seconds if this process is killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(file)
        raise UsageError(
            f'another training writes to {work_dir}: wait until it ends, or '
            'choose another --work-dir'
        ) from None
    except OSError:
        os.close(file)
        return
    _locks[holder] = file


def _job() -> str:
    return os.environ.get('TORCHELASTIC_RUN_ID', '')
