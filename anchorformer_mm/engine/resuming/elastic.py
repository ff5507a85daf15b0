"""Jobs of torchrun whose processes it starts again after one has died."""

import os
from pathlib import Path

from anchorformer_mm.utils.files import replacing

# Its time says when the job began; torchrun tells its processes only how
# often it has started them.
JOB_FILE = '.elastic_job'


def restarts() -> int:
    """Return how often torchrun has started this job's processes again."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))


def mark_beginning(work_dir: Path) -> None:
    """Let processes that are started again know what came before this job.

    Nothing is written by a job that is never started again, and by all
    processes of a job but the first.
    """
    if int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0)) == 0:
        return
    if os.environ.get('RANK') == '0' and beginning(work_dir) is None:
        with replacing(work_dir / JOB_FILE) as path:
            path.write_text(_job())


def beginning(work_dir: Path) -> int | None:
    """Return when a job began whose processes were started again.

    Returns:
        int | None: In the nanoseconds of its work folder's files. None for
        processes that are started for the first time, and if those of the
        first time died before they had said so.
    """
    path = work_dir / JOB_FILE
    if not restarts() or not path.is_file() or path.read_text() != _job():
        return None
    return path.stat().st_mtime_ns


def _job() -> str:
    return os.environ['TORCHELASTIC_RUN_ID']
