"""Whether two trainings left the same behind, bit for bit."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from anchorformer_mm.utils.checkpoint import weights_only

# Of clocks, machines and folders.
_IGNORED = ('cfg', 'time', 'experiment_name', 'eta')
_IGNORED_ENDS = ('/time', '/data_time', '/memory', 'data_time', 'memory')
# Paths: the names of the files count.
_PATHS = ('last_ckpt', 'best_ckpt', 'outdated_ckpts')


def first_difference(one: Any, other: Any, name: str = '') -> str | None:
    """Say where two checkpoints differ first.

    Args:
        one: A checkpoint, or a part of one.
        other: What it is compared with.
        name: Of the part.

    Returns:
        str | None: Name of the part and how it differs; None if all is equal,
        but for clocks, the text of the config and folders.
    """
    if type(one) is not type(other):
        return f'{name}: {type(one).__name__} and {type(other).__name__}'
    if isinstance(one, HistoryBuffer):
        return first_difference(list(one.data), list(other.data), name)
    if isinstance(one, (torch.Tensor, np.ndarray)):
        return _array_difference(
            torch.as_tensor(one), torch.as_tensor(other), name
        )
    if isinstance(one, Mapping):
        return _mapping_difference(one, other, name)
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return f'{name}: length {len(one)} and {len(other)}'
        pairs = enumerate(zip(one, other, strict=True))
        found = (first_difference(a, b, f'{name}[{i}]') for i, (a, b) in pairs)
        return next((difference for difference in found if difference), None)
    same = one == other
    if isinstance(one, float) and math.isnan(one):
        same = math.isnan(other)
    return None if same else f'{name}: {one!r} and {other!r}'


def _array_difference(
    one: torch.Tensor, other: torch.Tensor, name: str
) -> str | None:
    if one.shape != other.shape or one.dtype != other.dtype:
        return (
            f'{name}: {one.dtype} {tuple(one.shape)} and '
            f'{other.dtype} {tuple(other.shape)}'
        )
    if torch.equal(one, other):
        return None
    both_nan = one.isnan() & other.isnan()
    count = int(((one != other) & ~both_nan).sum())
    if not count:
        return None
    return f'{name}: {count} of {one.numel()} numbers differ'


def _mapping_difference(one: Mapping, other: Mapping, name: str) -> str | None:
    names = [str(key) for key in one if not _is_ignored(str(key))]
    others = [str(key) for key in other if not _is_ignored(str(key))]
    if sorted(names) != sorted(others):
        apart = ', '.join(sorted(set(names) ^ set(others)))
        return f'{name}: only one has {apart}'
    for key in one:
        if _is_ignored(str(key)):
            continue
        a, b = one[key], other[key]
        if str(key).startswith(_PATHS):
            a, b = _file_names(a), _file_names(b)
        difference = first_difference(a, b, f'{name}.{key}' if name else key)
        if difference:
            return difference
    return None


def _is_ignored(key: str) -> bool:
    return key in _IGNORED or key.endswith(_IGNORED_ENDS)


def _file_names(value: Any) -> Any:
    if isinstance(value, str):
        return Path(value).name
    if isinstance(value, (list, tuple)):
        return [Path(item).name for item in value]
    return value


def runs_difference(one: Path, other: Path) -> str | None:
    """Compare all the checkpoints and logged figures of two work folders.

    Returns:
        str | None: As :func:`first_difference`.
    """
    names, others = (
        sorted(path.name for path in folder.glob('*.pth'))
        for folder in (one, other)
    )
    if names != others:
        return f'files: {", ".join(names)} and {", ".join(others)}'
    for name in names:
        with weights_only():
            pair = [
                torch.load(
                    folder / name, map_location='cpu', weights_only=True
                )
                for folder in (one, other)
            ]
        difference = first_difference(*pair)
        if difference:
            return f'{name}: {difference}'
    return first_difference(logged(one), logged(other), 'log')


def logged(folder: Path) -> dict[str, dict[str, float]]:
    """Read what a run logged, by step and names of the figures.

    Of steps that were done again after the run was killed, the last counts.
    """
    figures = {}
    for line in _log_lines(folder):
        kept = {k: v for k, v in line.items() if not _is_ignored(k)}
        kind = 'train' if 'loss' in kept else 'evaluation'
        figures[f'{kind} {kept.get("step")}'] = kept
    return dict(sorted(figures.items()))


def _log_lines(folder: Path) -> Iterator[dict]:
    files: Sequence[Path] = sorted(folder.glob('*/vis_data/scalars.json'))
    for file in files:
        lines = file.read_text().splitlines()
        for number, line in enumerate(lines):
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                # Killed in the middle of it.
                if number + 1 < len(lines):
                    raise
