"""Long commands with their progress, and the cache of compiled operators.

Standard library only, and read by Python 3.6, so that it can be refused.
"""

import contextlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, List, Mapping, Optional, Tuple

GIB_PER_JOB = 2  # one compiler process on the largest of mmcv's sources
STALE_SECONDS = 24 * 3600
# A compiler's error, a Python exception, and pip's own.
ERROR_LINE = re.compile(r':\d+: (fatal )?error: |^\s*(\w*Error|ERROR): ')


class SetupError(RuntimeError):
    """The set-up cannot go on; the message says why and what helps."""


def say(text: str) -> None:
    print(f'setup: {text}', flush=True)


def last_line(log: str) -> str:
    lines = (line.strip() for line in reversed(log.splitlines()))
    return next((line for line in lines if line), '')


def build_progress(log: str) -> str:
    """How many objects ninja has compiled, from what it has printed."""
    counts = re.findall(r'^\s*\[(\d+)/(\d+)\]', log, re.MULTILINE)
    if not counts:
        return 'preparing'
    return '{} of {} objects compiled'.format(*counts[-1])


def run_logged(
    title: str,
    command: List[str],
    log: Path,
    progress: Callable[[str], str] = last_line,
    environ: Optional[Mapping[str, str]] = None,
) -> None:
    """Run a long command with its output in a file, and show how it gets on.

    Args:
        title: what the command does, for the one line before it.
        command: program and arguments.
        log: file for its output.
        progress: makes the line that is shown from the log so far.
        environ: its environment; that of this process where None.

    Raises:
        SetupError: the command failed; the message ends in its last lines.
    """
    say(title)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('w') as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )
    try:
        _watch(process, log, progress)
    except BaseException:
        _stop(process)
        raise
    if process.returncode:
        excerpt = failure_excerpt(log.read_text(errors='replace'))
        raise SetupError(f'{title}: failed, see {log}\n{excerpt}')


def _watch(
    process: subprocess.Popen, log: Path, progress: Callable[[str], str]
) -> None:
    """Show one line that is rewritten on a terminal, else one a minute."""
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns - 1 if terminal else 150
    before, after = ('\r\x1b[K', '') if terminal else ('', '\n')
    start = time.monotonic()
    while True:
        try:
            process.wait(timeout=1 if terminal else 60)
            break
        except subprocess.TimeoutExpired:
            minutes, seconds = divmod(int(time.monotonic() - start), 60)
            now = progress(log.read_text(errors='replace'))
            line = f'  {minutes}:{seconds:02d}  {now}'[:width]
            print(f'{before}{line}', end=after, flush=True)
    print(before, end='', flush=True)


def _stop(process: subprocess.Popen) -> None:
    """End a command, which gets time to clean up, and all its children."""
    try:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
    finally:  # also when a second signal cuts the waiting short
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def failure_excerpt(log: str) -> str:
    """The first errors in a log, and how it ends."""
    lines = log.splitlines()
    errors = [line for line in lines[:-10] if ERROR_LINE.search(line)]
    return '\n'.join(f'  | {line}' for line in [*errors[:10], *lines[-10:]])


def cache_folder(environ: Mapping[str, str], home: Path) -> Path:
    """The folder in which clones share what they have compiled."""
    if environ.get('ANCHORFORMER_MM_CACHE'):
        return Path(environ['ANCHORFORMER_MM_CACHE'])
    base = Path(environ.get('XDG_CACHE_HOME') or home / '.cache')
    return base / 'anchorformer_mm'


def wheel_key(torch: str, python: Tuple[int, ...], cuda_arch: str) -> str:
    """Name the builds of torch and Python that compiled operators fit.

    Args:
        torch: ``torch.__version__`` with its local part, ``2.13.0+cpu``.
        python: major and minor version.
        cuda_arch: compute capability that CUDA kernels are built for, ``90``;
            empty for operators on the CPU alone.
    """
    key = f'torch{torch}-cp{python[0]}{python[1]}-{platform.machine()}'
    return f'{key}-sm{cuda_arch}' if cuda_arch else key


def find_wheel(folder: Path, requirement: str) -> Optional[Path]:
    """The wheel of ``name==version`` in a folder, None where there is none."""
    name, version = requirement.split('==')
    wheels = folder.glob(f'{name.replace("-", "_")}-{version}-*.whl')
    return next(iter(sorted(wheels)), None)


def build_wheel(
    python: Path,
    requirement: str,
    folder: Path,
    log: Path,
    with_cuda: bool,
) -> Path:
    """Compile ``name==version`` against the torch of an environment.

    The work is done in a folder of its own beside the result, and the wheel
    is renamed into place, so builds may be interrupted or run side by side.

    Args:
        python: interpreter of the environment.
        requirement: what to build.
        folder: where the wheel goes.
        log: file for the output of the build.
        with_cuda: whether torch may see the GPU, for which mmcv then compiles.

    Returns:
        The path of the wheel.

    Raises:
        SetupError: the build failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    jobs = os.environ.get('MAX_JOBS', str(default_jobs()))
    environ = dict(os.environ, MAX_JOBS=jobs, MMCV_WITH_OPS='1')
    environ['PATH'] = f'{python.parent}{os.pathsep}{environ.get("PATH", "")}'
    if not with_cuda:
        environ['CUDA_VISIBLE_DEVICES'] = ''
    with tempfile.TemporaryDirectory(
        prefix='.partial-', dir=str(folder)
    ) as partial:
        environ['TMPDIR'] = partial
        command = [str(python), '-m', 'pip', 'wheel', '-v', '--no-deps']
        command += ['--no-build-isolation', '--no-cache-dir']
        command += ['--wheel-dir', f'{partial}/wheel', requirement]
        title = (
            f'compiling {requirement} with {jobs} jobs, once for this torch '
            'and Python (11 to 13 minutes on 2 cores)'
        )
        run_logged(title, command, log, build_progress, environ)
        wheel = find_wheel(Path(partial, 'wheel'), requirement)
        if wheel is None:
            raise SetupError(
                f'building {requirement} gave no wheel, see {log}'
            )
        target = folder / wheel.name
        wheel.replace(target)
    return target


def default_jobs() -> int:
    """As many compilers at once as there are cores, and memory for them."""
    try:
        cores = len(os.sched_getaffinity(0))
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    except (AttributeError, ValueError, OSError):
        return os.cpu_count() or 1
    return max(1, min(cores, memory // (GIB_PER_JOB * 2**30)))


def _remove_stale(folder: Path) -> None:
    """Remove what builds that were killed a day ago have left."""
    for partial in folder.glob('.partial-*'):
        if time.time() - partial.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(str(partial), ignore_errors=True)
