"""Check of the installed libraries: missing, too old or broken ones.

The OpenMMLab libraries exist in two families, the originals and the
maintained forks, which provide the same import names. Nothing is imported to
look at them: the answers come from import specs and package metadata.
"""

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from anchorformer_mm.utils.errors import UsageError

SCHEMAS_MODULE = '_anchorformer_mm_torchvision'
OPERATORS = Path(__file__).parents[1] / '.mim' / 'mmcv_ops'


class EnvironmentProblem(UsageError):
    """The installed libraries cannot serve what was asked for."""


@dataclass(frozen=True)
class Library:
    """An import name that the project relies on.

    Args:
        minimum: oldest version that serves.
        originals: distributions that provide it; the first is the one to get.
        fork: distribution of the maintained family that provides it.
        needs: import names without which it does not work.
        operators: whether it calls the operators of mmcv.
    """

    minimum: str
    originals: tuple[str, ...]
    fork: str | None = None
    needs: tuple[str, ...] = ()
    operators: bool = False

    def requirement(self, family: str) -> str:
        """Requirement to install, as the extra of the family pins it."""
        is_fork = self.fork is not None and family == 'onedl'
        names = (self.fork,) if is_fork else self.originals
        try:
            lines = requires('anchorformer-mm') or ()
        except PackageNotFoundError:
            lines = ()
        for pinned in map(Requirement, lines):
            extra = f'extra == "{family}"'
            if pinned.name in names and extra in str(pinned.marker):
                return f'{pinned.name}{pinned.specifier}'
        return f"'{names[0]}>={self.minimum}'"


# fmt: off
LIBRARIES = {
    'torch': Library('2.1', ('torch',)),
    'torchvision': Library('0.16', ('torchvision',)),
    'mmengine': Library('0.10', ('mmengine', 'mmengine-lite'),
                        'onedl-mmengine', ('torch',)),
    'mmcv': Library('2.1', ('mmcv', 'mmcv-full', 'mmcv-lite'), 'onedl-mmcv',
                    ('torch', 'mmengine')),
    'mmdet': Library('3.3', ('mmdet',), 'onedl-mmdetection',
                     ('torch', 'mmengine', 'mmcv'), operators=True),
    'mmseg': Library('1.2', ('mmsegmentation',), 'onedl-mmsegmentation',
                     ('torch', 'mmengine', 'mmcv'), operators=True),
    'mmpretrain': Library('1.2', ('mmpretrain',), 'onedl-mmpretrain',
                          ('torch', 'torchvision', 'mmengine', 'mmcv')),
    'pytorch_grad_cam': Library('1.4', ('grad-cam',),
                                needs=('torch', 'torchvision')),
    'onnx': Library('1.14', ('onnx',)),
    'onnxslim': Library('0.1.98', ('onnxslim',)),
    'onnxruntime': Library('1.16', ('onnxruntime', 'onnxruntime-gpu')),
}
# fmt: on


def use_idle_cores() -> None:
    """Give torch as many threads as cores are idle; call it before the import.

    OpenMP's threads wait for each other by spinning: with one more than there
    are idle cores, a step takes several times as long. ``OMP_NUM_THREADS``
    goes before; without Linux's ``/proc`` nothing is done.
    """
    load = Path('/proc/loadavg')
    if 'OMP_NUM_THREADS' in os.environ or not load.exists():
        return
    running = []
    for _ in range(5):
        time.sleep(0.02)
        # Of the whole machine, this process among them.
        running.append(int(load.read_text().split()[3].split('/')[0]) - 1)
    idle = (os.cpu_count() or 1) - sorted(running)[2]
    threads = max(1, min(idle, len(os.sched_getaffinity(0))))
    os.environ['OMP_NUM_THREADS'] = str(threads)


def check_environment(requires: Sequence[str]) -> None:
    """Check that libraries are there, new enough and work together.

    A library that has no package metadata (a source folder on the path) is
    taken as new enough.

    Args:
        requires: import names, of ``LIBRARIES``; what they need themselves is
            checked too. A torchvision that is installed is always checked,
            since a broken one breaks the import of mmdet.

    Raises:
        EnvironmentProblem: one line for each finding, with its remedy.
    """
    needed = [need for name in requires for need in LIBRARIES[name].needs]
    names = list(dict.fromkeys([*needed, *requires]))
    findings = list(_family_findings())
    for name in names:
        findings += _library_findings(name)
    findings += _operator_findings(requires)
    findings += _torchvision_findings()
    findings += _transformers_findings(requires)
    if findings:
        raise EnvironmentProblem('\n'.join(findings))


def _distribution(names: Sequence[str | None]) -> tuple[str, str] | None:
    """Name and version of the first of some distributions that is there."""
    for name in filter(None, names):
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


def _spec(name: str) -> ModuleSpec | None:
    """Where a package is; a bare folder of that name does not count."""
    spec = find_spec(name)
    return spec if spec is not None and spec.origin is not None else None


def _installed(family: str) -> list[tuple[str, str]]:
    """Names and versions of the distributions of a family."""
    names = []
    for library in LIBRARIES.values():
        if library.fork is not None:
            is_fork = family == 'onedl'
            names += [library.fork] if is_fork else library.originals
    return [found for name in names if (found := _distribution([name]))]


def install_command(name: str) -> str:
    """The pip command for a library, of the family that is there already."""
    originals_only = _installed('openmmlab') and not _installed('onedl')
    family = 'openmmlab' if originals_only else 'onedl'
    return f'pip install {LIBRARIES[name].requirement(family)}'


def _family_findings() -> Iterator[str]:
    originals, forks = _installed('openmmlab'), _installed('onedl')
    if originals and forks:
        both = [*originals, *forks]
        listing = ', '.join(f'{name} {number}' for name, number in both)
        yield (
            'two families that overwrite one another are installed, '
            f'{listing}: pip uninstall -y '
            f'{" ".join(name for name, _ in both)}, then install one of them'
        )


def _library_findings(name: str) -> Iterator[str]:
    library = LIBRARIES[name]
    if _spec(name) is None:
        yield f'{name} is not installed: {install_command(name)}'
        return
    found = _distribution([library.fork, *library.originals])
    minimum = Version(library.minimum)
    if found and Version(found[1]).release < minimum.release:
        yield (
            f'{name} {found[1]} is too old, {minimum} or newer is needed: '
            f'{install_command(name)}'
        )


def _operator_findings(required: Sequence[str]) -> Iterator[str]:
    users = [name for name in required if LIBRARIES[name].operators]
    spec = _spec('mmcv')
    if not users or spec is None:
        return
    # Looked up in mmcv's folder, since find_spec would import mmcv.
    if PathFinder.find_spec('mmcv._ext', spec.submodule_search_locations):
        return
    yield (
        f'this mmcv has no operators, which {" and ".join(users)} needs: '
        f'pip install {OPERATORS}'
    )


def broken_operators(error: ImportError) -> str:
    """Say what to do about compiled operators of mmcv that do not load."""
    mmcv = _distribution(['onedl-mmcv', *LIBRARIES['mmcv'].originals])
    pinned = '=='.join(mmcv) if mmcv else 'mmcv'
    return (
        f'{error}: the operators of mmcv were compiled for another torch; '
        f'pip install --force-reinstall --no-deps --no-cache-dir {pinned} && '
        f'pip install {OPERATORS}'
    )


def _transformers_findings(required: Sequence[str]) -> Iterator[str]:
    """Find a transformers whose import by mmpretrain breaks it."""
    found = _distribution(['transformers'])
    breaks = {'mmdet', 'mmpretrain'} & set(required) and _spec('mmpretrain')
    if found and breaks and Version(found[1]).major >= 5:
        yield (
            f'transformers {found[1]} breaks the import of mmpretrain, and of '
            'mmdet with it ("NoneType takes no arguments"): pip install '
            "'transformers<5'"
        )


def _torchvision_findings() -> Iterator[str]:
    """Say why a torchvision that is installed cannot be imported."""
    torch, vision = _distribution(['torch']), _distribution(['torchvision'])
    works = 'torchvision' in sys.modules or find_spec(SCHEMAS_MODULE)
    if torch is None or vision is None or works:
        return
    for line in requires('torchvision') or ():
        wanted = Requirement(line)
        if wanted.name == 'torch' and not wanted.specifier.contains(
            torch[1], prereleases=True
        ):
            # The releases go together: torch 2.N with torchvision 0.(N + 15).
            minor = Version(torch[1]).minor + 15
            yield (
                f'torchvision {vision[1]} needs torch{wanted.specifier}, but '
                f'torch is {torch[1]}: pip install --no-deps '
                f'torchvision==0.{minor}.*'
            )
            return
    package, torch_package = _spec('torchvision'), _spec('torch')
    if package is None or torch_package is None:
        return
    libraries = Path(package.origin).parent.glob('_C*.so')
    cuda = Path(torch_package.origin).parent / 'lib' / 'libtorch_cuda.so'
    if not cuda.exists() and any(
        b'libtorch_cuda.so' in library.read_bytes() for library in libraries
    ):
        public = re.sub(r'\+.*', '', vision[1])
        yield (
            f'torchvision {vision[1]} is a CUDA build beside the CPU build '
            f'torch {torch[1]}: pip install --force-reinstall --no-deps '
            f'torchvision=={public}+cpu (from the index of that torch; or '
            'pip uninstall -y torchvision, without which mmpretrain alone '
            'does not work)'
        )
