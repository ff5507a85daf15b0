"""Make the environment that the Makefile uses, from nothing but Python.

    python3 tools/misc/bootstrap.py --stack onedl|openmmlab

``onedl`` (the maintained forks) goes to ``.venv``, ``openmmlab`` (the
originals) to ``.venv-openmmlab``. What the machine lacks is said before any
long step, an interrupted run is repaired by the next one, and a finished one
is recognised at once. The compiled mmcv operators are built once and kept in
``$ANCHORFORMER_MM_CACHE`` (default ``~/.cache/anchorformer_mm``), in a folder
named after the torch and the Python that they were built for.

Standard library only, and read by Python 3.6, so that it can refuse it.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import bootstrap_build as build
import bootstrap_checks as checks
from bootstrap_build import SetupError, say
from bootstrap_checks import STACKS

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = 'mmengine, mmcv.ops, mmdet, mmseg, mmpretrain, anchorformer_mm'
SCHEMAS_MODULE = '_anchorformer_mm_torchvision'

# torch's version, whether it sees a GPU, and the compute capability to compile
# for: none without nvcc.
TORCH_FACTS = """
import json, torch
from torch.utils.cpp_extension import CUDA_HOME
gpu = torch.cuda.is_available()
arch = torch.cuda.get_device_capability() if gpu and CUDA_HOME else ()
print(json.dumps([torch.__version__, gpu, ''.join(map(str, arch))]))
"""


class Environment:
    """A virtual environment of this project.

    Args:
        path: its folder.
        stack: the family of libraries that goes into it.
    """

    def __init__(self, path: Path, stack: str) -> None:
        self.path = path
        self.stack = stack
        self.python = path / 'bin/python'
        self.logs = path / 'logs'
        # What no repair can change: it is made anew where these differ.
        self.made_for = {
            'python': '{}.{}'.format(*sys.version_info),
            'root': str(ROOT),
            'stack': stack,
        }

    def ask(self, code: str) -> 'subprocess.CompletedProcess[str]':
        return subprocess.run(
            [str(self.python), '-I', '-c', code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def pip(self, title: str, log: str, *arguments: str) -> None:
        command = [str(self.python), '-m', 'pip', '--no-input']
        command += ['--disable-pip-version-check', *arguments]
        build.run_logged(title, command, self.logs / log)

    def make(self) -> None:
        """Make it, anew where it is broken or was made for something else."""
        marker = self.path / checks.MARKER
        if self.path.exists():
            if not marker.exists() and any(self.path.iterdir()):
                raise SetupError(
                    f'{self.path} was not made by this script: move it away'
                )
            if self._works():
                return
            say(f'{self.path.name} is broken or out of date, making it anew')
            shutil.rmtree(str(self.path))
        self.path.mkdir()
        marker.write_text(json.dumps(self.made_for))
        command = [sys.executable, '-m', 'venv', str(self.path)]
        title = f'making {self.path.name}'
        build.run_logged(title, command, self.logs / 'venv.log')

    def _works(self) -> bool:
        return (
            checks.read_marker(self.path) == self.made_for
            and self.python.exists()
            and self.ask('import pip').returncode == 0
        )

    def install_requirements(self) -> None:
        files = [f'requirements/{self.stack}.txt', 'requirements/dev.txt']
        arguments = [part for file in files for part in ('-r', ROOT / file)]
        title = f'installing {" and ".join(files)}'
        self.pip(title, 'requirements.log', 'install', *map(str, arguments))

    def install_mmcv(self, cache: Path) -> None:
        """Install the compiled operators, from the cache where it has them."""
        answer = self.ask(TORCH_FACTS)
        if answer.returncode:
            raise SetupError(f'torch cannot be imported:\n{answer.stderr}')
        torch, gpu, arch = json.loads(answer.stdout.splitlines()[-1])
        if gpu and not arch:
            say(
                'torch sees a GPU but there is no nvcc: the mmcv operators '
                'are for the CPU only, so NMS will not run on the GPU (to '
                'change that, install the CUDA toolkit of this torch, delete '
                f'{self.path.name} and run again)'
            )
        key = build.wheel_key(torch, sys.version_info[:2], arch)
        folder = cache / 'wheels' / key
        mmcv = STACKS[self.stack].mmcv
        wheel = build.find_wheel(folder, mmcv)
        if wheel is None:
            log = self.logs / 'mmcv.log'
            wheel = build.build_wheel(
                self.python, mmcv, folder, log, with_cuda=bool(arch)
            )
        title = f'installing {wheel}'
        options = ('install', '--no-deps', '--force-reinstall')
        self.pip(title, 'mmcv-install.log', *options, str(wheel))

    def mend_opencv(self) -> None:
        """Use the headless OpenCV where the machine has no display libraries.

        Raises:
            SetupError: OpenCV cannot be imported for another reason.
        """
        answer = self.ask('import cv2')
        if 'cannot open shared object file' in answer.stderr:
            pins = (ROOT / f'requirements/{self.stack}.txt').read_text()
            version = re.search(r'^opencv-python==(\S+)', pins, re.M).group(1)
            self.pip(
                'no display libraries here: installing the headless OpenCV',
                'opencv.log',
                'install',
                '--no-deps',
                '--force-reinstall',
                f'opencv-python-headless=={version}',
            )
            answer = self.ask('import cv2')
        if answer.returncode:
            raise SetupError(f'import cv2 failed:\n{answer.stderr}')

    def mend_torchvision(self) -> None:
        """Declare the operators of a torchvision that cannot load its own.

        Raises:
            SetupError: torchvision cannot be imported for another reason.
        """
        answer = self.ask('import torchvision')
        if 'operator torchvision::nms does not exist' in answer.stderr:
            code = 'import sysconfig; print(sysconfig.get_paths()["purelib"])'
            install_schemas(Path(self.ask(code).stdout.strip()))
            say(
                'this torchvision cannot load its compiled operators: '
                f'declared them in {SCHEMAS_MODULE}.py of {self.path.name}'
            )
            answer = self.ask('import torchvision')
        if answer.returncode:
            raise SetupError(f'import torchvision failed:\n{answer.stderr}')

    def check(self) -> None:
        """Import the five libraries and the project."""
        say(f'importing {LIBRARIES}')
        answer = self.ask(f'import {LIBRARIES}')
        if answer.returncode:
            raise SetupError(
                f'the import failed; delete {self.path.name} and run again '
                f'to start afresh\n{answer.stderr}'
            )


def install_schemas(site_packages: Path) -> None:
    """Lay ``torchvision_schemas.py`` where each interpreter start finds it."""
    source = Path(__file__).with_name('torchvision_schemas.py').read_text()
    texts = {
        f'{SCHEMAS_MODULE}.py': source,
        f'{SCHEMAS_MODULE}.pth': f'import {SCHEMAS_MODULE}\n',
    }
    for name, text in texts.items():
        partial = site_packages / f'{name}.partial'
        partial.write_text(text)
        partial.replace(site_packages / name)


def set_up(stack: str) -> None:
    """Bring the environment of a stack to the state that the project needs.

    Raises:
        SetupError: the machine lacks something, or a step failed.
    """
    venv = ROOT / STACKS[stack].folder
    found = checks.foreign_distributions(venv, stack)
    if found:
        raise SetupError(checks.foreign_problem(venv, found))
    environment = Environment(venv, stack)
    key = checks.stamp_key(ROOT, stack, sys.version_info[:3])
    if checks.is_ready(venv, key, environment.made_for):
        say(f'{venv.name} is ready ({stack})')
        return
    cache = build.cache_folder(os.environ, Path.home())
    problems = checks.machine_problems(venv, cache)
    if problems:
        raise SetupError('\nsetup: '.join(problems))
    if checks.free_bytes(venv) < checks.CUDA_TORCH_GIB * checks.GIB:
        say(
            f'less than {checks.CUDA_TORCH_GIB} GiB of free disk: enough '
            'beside a CPU build of torch, not beside a CUDA build'
        )
    environment.make()
    stamp = venv / checks.STAMP
    if stamp.exists():
        stamp.unlink()
    environment.install_requirements()
    environment.mend_opencv()
    environment.mend_torchvision()
    environment.install_mmcv(cache)
    environment.pip(
        'installing the project itself',
        'project.log',
        'install',
        '--no-deps',
        '--no-build-isolation',
        '--editable',
        str(ROOT),
    )
    environment.check()
    stamp.write_text(key)
    say(f'{venv.name} is ready ({stack})')


def main() -> int:
    problem = checks.python_problem(
        sys.version_info[:3], checks.supported_pythons()
    )
    if problem:
        say(problem)
        return 1
    parser = argparse.ArgumentParser(description='Set the environment up.')
    parser.add_argument('--stack', choices=sorted(STACKS), default='onedl')
    stack = parser.parse_args().stack
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        set_up(stack)
    except SetupError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say('interrupted; the next run goes on from here')
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
