"""What ``bootstrap.py`` finds out before it changes anything.

Standard library only, and read by Python 3.6, so that it can be refused.
"""

import hashlib
import json
import os
import re
import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

VERSION = 1  # raise it when finished environments must be set up anew
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
MARKER, STAMP = 'anchorformer_mm.json', 'anchorformer_mm.stamp'
GIB = 2**30
# An environment with a CPU build of torch takes 2.2 GiB and pip's downloads
# about one more; the NVIDIA libraries of a CUDA build take the rest.
CPU_TORCH_GIB, CUDA_TORCH_GIB, BUILD_GIB = 4, 12, 1


class Stack(NamedTuple):
    """One family of the OpenMMLab libraries."""

    folder: str
    mmcv: str
    distributions: Tuple[str, ...]


STACKS = {
    'onedl': Stack(
        '.venv',
        'onedl-mmcv==2.3.6',
        (
            'onedl-mmengine',
            'onedl-mmcv',
            'onedl-mmdetection',
            'onedl-mmsegmentation',
            'onedl-mmpretrain',
        ),
    ),
    'openmmlab': Stack(
        '.venv-openmmlab',
        'mmcv==2.1.0',
        (
            'mmengine',
            'mmengine-lite',
            'mmcv',
            'mmcv-full',
            'mmcv-lite',
            'mmdet',
            'mmsegmentation',
            'mmpretrain',
        ),
    ),
}


def python_problem(version: Tuple[int, ...], names: List[str]) -> str:
    """Say why this Python cannot be used, or return an empty string.

    Args:
        version: major, minor and micro version of the running Python.
        names: the supported interpreters that are on PATH.
    """
    if OLDEST_PYTHON <= tuple(version[:2]) <= NEWEST_PYTHON:
        return ''
    dotted = '.'.join(str(part) for part in version[:3])
    problem = f'Python {dotted} is running, but 3.10 to 3.13 are supported'
    if names:
        return f'{problem}: run make with PYTHON={names[0]}'
    return f'{problem}: install one, then run make with PYTHON=python3.X'


def supported_pythons() -> List[str]:
    """The supported interpreters on PATH, newest first."""
    minors = range(NEWEST_PYTHON[1], OLDEST_PYTHON[1] - 1, -1)
    names = [f'python3.{minor}' for minor in minors]
    return [name for name in names if shutil.which(name)]


def compiler_problem(compiler: str, found: Optional[str]) -> str:
    """Say that the C++ compiler was not found, or return an empty string."""
    if found:
        return ''
    return (
        f'no C++ compiler: {compiler!r} is not on PATH (Debian, Ubuntu: '
        'apt install g++; Fedora: dnf install gcc-c++)'
    )


def headers_problem(include: Path) -> str:
    """Say that Python.h is not there, or return an empty string."""
    if (include / 'Python.h').is_file():
        return ''
    return (
        f'no Python headers: {include / "Python.h"} does not exist (Debian, '
        'Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)'
    )


def venv_problem() -> str:
    """Say that environments cannot be made, or return an empty string."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        return (
            f'no venv module: {error} (Debian, Ubuntu: apt install '
            'python3-venv)'
        )
    return ''


def disk_problem(place: Path, free: int, needed_gib: int) -> str:
    """Say that a folder has too little room, or return an empty string."""
    if free >= needed_gib * GIB:
        return ''
    return (
        f'too little free disk: {free / GIB:.1f} GiB at {place}, '
        f'{needed_gib} GiB needed'
    )


def free_bytes(place: Path) -> int:
    """Free bytes of the file system on which ``place`` is or would be."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(str(place)).free


def machine_problems(venv: Path, cache: Path) -> List[str]:
    """Everything but the Python version that the machine lacks.

    Args:
        venv: the environment that is to be made or repaired.
        cache: the folder that keeps the compiled operators.
    """
    compiler = os.environ.get('CXX', 'c++').split()[0]
    has_torch = any(venv.glob('lib/python*/site-packages/torch'))
    rooms = [
        (venv, BUILD_GIB if has_torch else CPU_TORCH_GIB),
        (cache, BUILD_GIB),
        (Path(tempfile.gettempdir()), BUILD_GIB),
    ]
    problems = [
        compiler_problem(compiler, shutil.which(compiler)),
        headers_problem(Path(sysconfig.get_paths()['include'])),
        venv_problem(),
    ]
    problems += [disk_problem(at, free_bytes(at), gib) for at, gib in rooms]
    return [problem for problem in problems if problem]


def normalized(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


def foreign_distributions(venv: Path, stack: str) -> List[str]:
    """The libraries of other families than ``stack`` in an environment."""
    foreign = {
        name
        for other, family in STACKS.items()
        if other != stack
        for name in family.distributions
    }
    installed = {
        normalized(info.name.split('-')[0])
        for info in venv.glob('lib/python*/site-packages/*.dist-info')
    }
    return sorted(installed & foreign)


def foreign_problem(venv: Path, found: List[str]) -> str:
    """Say what two families in one environment mean and what helps."""
    return (
        f'{venv.name} holds {", ".join(found)} of the other family, which '
        f'provide the same import names: delete {venv.name}, or choose the '
        'other STACK'
    )


def stamp_key(root: Path, stack: str, version: Tuple[int, ...]) -> str:
    """A digest of everything that a finished environment depends on."""
    digest = hashlib.sha256(repr((VERSION, stack, version)).encode())
    files = sorted((root / 'requirements').glob('*.txt'))
    files += [root / 'setup.py', root / 'tools/misc/torchvision_schemas.py']
    for file in files:
        digest.update(file.name.encode() + b'\0' + file.read_bytes() + b'\0')
    return digest.hexdigest()


def is_ready(venv: Path, key: str, made_for: Mapping[str, str]) -> bool:
    """Whether the last set-up of ``venv`` finished and still holds."""
    stamp = venv / STAMP
    return (
        stamp.is_file()
        and stamp.read_text() == key
        and read_marker(venv) == made_for
        and (venv / 'bin/python').exists()
    )


def read_marker(venv: Path) -> Optional[Dict[str, str]]:
    """What an environment was made for; None where that cannot be read."""
    try:
        return json.loads((venv / MARKER).read_text())
    except (OSError, ValueError):
        return None
