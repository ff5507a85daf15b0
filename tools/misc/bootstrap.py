"""Make the environment that the Makefile uses, from nothing but Python.

    python3 tools/misc/bootstrap.py --stack onedl|openmmlab [--ops compiled]

``onedl`` (the maintained forks) goes to ``.venv``, ``openmmlab`` (the
originals) to ``.venv-openmmlab``. What the machine lacks is said first, an
interrupted run is repaired by the next one, a finished one is recognised at
once. mmcv's operators are those of ``mmcv_ops/``, which need no compiler; with
``--ops compiled`` mmcv is compiled and its own are used from then on.

Standard library only, and read by Python 3.7, so that it can refuse it.
"""

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
FOLDERS = {'onedl': '.venv', 'openmmlab': '.venv-openmmlab'}
COMPILED = {'onedl': 'onedl-mmcv', 'openmmlab': 'mmcv'}
LIBRARIES = 'mmengine, mmcv.ops, mmdet, mmseg, mmpretrain, anchorformer_mm'
STAMP, SCHEMAS = 'anchorformer_mm.stamp', '_anchorformer_mm_torchvision'
# A CPU build of torch and the rest; the NVIDIA libraries take 8 more.
NEEDED_GIB = 4


class SetupError(RuntimeError):
    """The set-up cannot go on; the message says why and what helps."""


def say(text: str) -> None:
    print(f'setup: {text}', flush=True)


def pins(stack: str) -> dict:
    """Names and versions in the requirements of a stack."""
    text = (ROOT / 'requirements' / f'{stack}.txt').read_text()
    return dict(re.findall(r'^([\w-]+)==(\S+)', text, re.MULTILINE))


def machine_problems(venv: Path) -> list:
    """What the machine lacks for an environment, one line each."""
    problems = []
    version = sys.version_info[:2]
    if not OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        names = [f'python3.{n}' for n in range(NEWEST_PYTHON[1], 9, -1)]
        found = next(filter(shutil.which, names), 'python3.X')
        problems.append(
            f'Python {version[0]}.{version[1]} is running, but 3.10 to 3.13 '
            f'are supported: run make with PYTHON={found}'
        )
    free = shutil.disk_usage(str(ROOT)).free / 2**30
    if free < NEEDED_GIB and not venv.exists():
        problems.append(
            f'too little free disk: {free:.1f} GiB at {ROOT}, {NEEDED_GIB} '
            'GiB needed (12 where pip gets a CUDA build of torch)'
        )
    return problems


def foreign_distributions(venv: Path, stack: str) -> list:
    """Distributions of the other family that an environment holds."""
    other = next(name for name in FOLDERS if name != stack)
    foreign = {COMPILED[other], *pins(other)} - set(pins(stack))
    infos = venv.glob('lib/python*/site-packages/*.dist-info')
    names = {re.sub(r'[-_.]+', '-', i.name.split('-')[0]) for i in infos}
    found = foreign & {name.lower() for name in names}
    return sorted(name for name in found if name.startswith(('mm', 'onedl')))


def stamp_key(stack: str) -> str:
    """A digest of what a finished environment depends on."""
    files = [*(ROOT / 'requirements').glob('*.txt'), ROOT / 'setup.py']
    files += [Path(__file__), *(ROOT / 'mmcv_ops').glob('mmcv/*.py')]
    text = b''.join(file.read_bytes() for file in sorted(files))
    made_for = f'{stack} {ROOT} {sys.version_info[:2]}'.encode()
    return hashlib.sha256(made_for + text).hexdigest()


def run_logged(title: str, command: list, log: Path, **environ: str) -> None:
    """Run a long command with its output in a file, and show its last line."""
    say(title)
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open('w') as sink:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, **environ),
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
                break
            done = log.read_text(errors='replace').strip().split('\n')[-1]
            print(f'  {time.monotonic() - start:.0f} s  {done}'[:78])
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode:
        lines = log.read_text(errors='replace').splitlines()[-12:]
        end = '\n'.join(f'  | {line}' for line in lines)
        raise SetupError(f'{title}: failed, see {log}\n{end}')


def install_schemas(site_packages: Path) -> None:
    """Declare the operators of a torchvision that cannot load its own."""
    source = Path(__file__).with_name('torchvision_schemas.py')
    shutil.copy(str(source), str(site_packages / f'{SCHEMAS}.py'))
    (site_packages / f'{SCHEMAS}.pth').write_text(f'import {SCHEMAS}\n')


class Environment:
    """A virtual environment of this project, at ``path``, for a stack."""

    def __init__(self, path: Path, stack: str) -> None:
        self.path, self.stack = path, stack
        self.python = path / 'bin/python'

    def pip(self, title: str, log: str, *arguments, **environ: str) -> None:
        pip = [self.python, '-m', 'pip', '--disable-pip-version-check']
        command = [*pip, '--no-input', 'install', *arguments]
        run_logged(title, command, self.path / 'logs' / log, **environ)

    def error_of(self, code: str) -> str:
        """What Python writes to stderr when it fails to run some code."""
        done = subprocess.run(
            [str(self.python), '-I', '-c', code],
            capture_output=True,
            text=True,
        )
        return done.stderr if done.returncode else ''

    def make(self) -> None:
        """Make it, anew where it is broken or for another Python."""
        version = 'import pip, sys; assert sys.version_info[:2] == {}'
        if self.python.exists():
            if not self.error_of(version.format(sys.version_info[:2])):
                return
            say(f'{self.path.name} is broken or out of date, making it anew')
        elif self.path.exists() and not (self.path / 'pyvenv.cfg').exists():
            raise SetupError(f'{self.path} is no environment: move it away')
        command = [sys.executable, '-m', 'venv', '--clear', self.path]
        log = self.path.with_name('build') / 'venv.log'
        run_logged(f'making {self.path.name}', command, log)

    def install_requirements(self) -> None:
        files = [f'requirements/{self.stack}.txt', 'requirements/dev.txt']
        given = [part for file in files for part in ('-r', ROOT / file)]
        # With build isolation there is no torch, so mmcv compiles nothing.
        self.pip(f'installing {" and ".join(files)}', 'pip.log', *given)
        if 'cannot open shared object file' in self.error_of('import cv2'):
            version = pins(self.stack)['opencv-python']
            self.pip(
                'no display libraries here: installing the headless OpenCV',
                'opencv.log',
                '--no-deps',
                '--force-reinstall',
                f'opencv-python-headless=={version}',
            )

    def compile_mmcv(self) -> None:
        """Compile mmcv's operators for the torch that is there."""
        if any(self.path.glob('lib/python*/site-packages/mmcv/_ext*.so')):
            return
        if not shutil.which(os.environ.get('CXX', 'c++').split()[0]):
            raise SetupError('OPS=compiled needs a C++ compiler on PATH')
        name, pinned = COMPILED[self.stack], pins(self.stack)
        version = pinned.get(name) or pinned[f'{name}-lite']
        self.pip(
            f'compiling {name}=={version} (10 minutes on 2 cores)',
            'mmcv.log',
            *('-v', '--no-deps', '--no-build-isolation', '--no-cache-dir'),
            *('--force-reinstall', '--no-binary', name, f'{name}=={version}'),
            MMCV_WITH_OPS='1',
            PATH=f'{self.path / "bin"}{os.pathsep}{os.environ["PATH"]}',
        )


def set_up(stack: str, ops: str) -> None:
    """Bring the environment of a stack to the state that it needs."""
    venv = ROOT / FOLDERS[stack]
    problems = machine_problems(venv)
    found = foreign_distributions(venv, stack)
    if found:
        problems.append(
            f'{venv.name} holds {", ".join(found)} of the other family: '
            f'delete {venv.name}, or choose the other STACK'
        )
    if problems:
        raise SetupError('\nsetup: '.join(problems))
    environment = Environment(venv, stack)
    stamp, key = venv / STAMP, stamp_key(stack)
    ready = stamp.exists() and stamp.read_text() == key
    if not ready:
        environment.make()
        environment.install_requirements()
        missing = 'operator torchvision::nms does not exist'
        if missing in environment.error_of('import torchvision'):
            say('torchvision cannot load its operators here: declaring them')
            install_schemas(next(venv.glob('lib/python*/site-packages')))
        environment.pip(
            'installing the project and its operators for mmcv',
            'project.log',
            *('--no-deps', '--no-build-isolation'),
            *(ROOT / 'mmcv_ops', '--editable', ROOT),
        )
    if ops == 'compiled':
        environment.compile_mmcv()
    if ops == 'compiled' or not ready:
        error = environment.error_of(f'import {LIBRARIES}')
        if error:
            raise SetupError(
                f'importing {LIBRARIES} failed; delete {venv.name} and run '
                f'again to start afresh\n{error}'
            )
        stamp.write_text(key)
    say(f'{venv.name} is ready: source {venv.name}/bin/activate')


def main() -> int:
    parser = argparse.ArgumentParser(description='Set the environment up.')
    parser.add_argument('--stack', default='onedl', choices=FOLDERS)
    parser.add_argument('--ops', choices=['python', 'compiled'])
    args = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        set_up(args.stack, args.ops)
    except SetupError as error:
        say(str(error))
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
