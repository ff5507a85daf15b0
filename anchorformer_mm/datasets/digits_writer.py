"""Write the digits data set to a folder: all of it, or nothing."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from os import getpid
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import Progress

from anchorformer_mm.datasets.digits import SEGMENTATION_CLASSES
from anchorformer_mm.datasets.digits_formats import (
    DATASET_NAME,
    SPLITS,
    DigitsSpec,
    write_json,
    write_split,
)
from anchorformer_mm.datasets.digits_workers import processes

FORMAT_VERSION = 1
META_NAME = 'meta.json'


def write_digits(
    out: str | Path,
    spec: DigitsSpec | None = None,
    *,
    workers: int = 1,
    force: bool = False,
    progress: bool = False,
) -> bool:
    """Write the data set to a folder that appears only once complete.

    ```
    out/
      meta.json                                      what, how, from what
      annotations/instances_{train,val}.json         COCO detection
      {train,val}/000001.jpg                         scenes
      semantic/{train,val}/000001.png                0 background, digit + 1
      classification/{train,val}/<class>/<scan>.png  single digits, 64 px
      classification/meta/{train,val}.txt            their digits
    ```

    The maps hold 11 classes with the background as 0, so mmseg reads them
    with ``reduce_zero_label=False`` and ``SEGMENTATION_CLASSES``. A COCO box
    is tight around the whole stroke, its segmentation is that stroke as
    uncompressed RLE and its area the stroke's pixels; the maps show visible
    strokes only. Folders sort by name, not by digit, so a reader that wants
    the labels of ``DIGIT_CLASSES`` takes them from ``classification/meta``.
    Train and validation share no scan.

    Args:
        out: Folder to make.
        spec: What to write, the default set if None.
        workers: Number of processes. It does not change what is written.
        force: Replace a digits data set that is there, whatever its
            arguments; nothing else is ever replaced.
        progress: Show a progress bar on stderr.

    Returns:
        bool: False if the folder holds just this data set already.

    Raises:
        ValueError: ``workers`` is less than 1.
        FileExistsError: ``out`` is not ours, or ``force`` is needed.
    """
    if workers < 1:
        raise ValueError(f'workers must be at least 1, got {workers}')
    spec = spec or DigitsSpec()
    out = Path(out).expanduser().resolve()
    if _is_there(out, spec, force):
        return False
    bar = Progress(console=Console(stderr=True), disable=not progress)
    with _published(out) as folder, bar, processes(workers) as map_items:

        def run(function: Callable, items: range, label: str) -> list:
            results = map_items(function, items)
            return list(bar.track(results, len(items), description=label))

        counts = {
            split: write_split(run, folder, spec, split) for split in SPLITS
        }
        write_json(folder / META_NAME, _meta(folder, spec, counts), indent=2)
    return True


def _is_there(out: Path, spec: DigitsSpec, force: bool) -> bool:
    """Tell whether ``out`` needs no work; refuse to replace what is not ours.

    Raises:
        FileExistsError: As for :func:`write_digits`.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        meta = json.loads((out / META_NAME).read_text())
        ours = meta['name'] == DATASET_NAME
    except (OSError, ValueError, TypeError, KeyError):
        ours = False
    if not ours:
        raise FileExistsError(
            f'{out} exists and is not a digits data set: name another folder'
        )
    if force:
        return False
    wanted = _identity(spec)
    other = [
        f'{key} {meta.get(key)}, not {value}'
        for key, value in wanted.items()
        if meta.get(key) != value
    ]
    if other:
        raise FileExistsError(
            f'{out} holds a digits data set of {"; ".join(other)}: name '
            'another folder, or replace it with --force (force=True)'
        )
    if _count_files(out) < meta['files']:
        raise FileExistsError(
            f'{out} holds a digits data set with files missing: replace '
            'it with --force (force=True)'
        )
    return True


def _identity(spec: DigitsSpec) -> dict:
    """Return what two equal data sets have in common, as JSON gives it."""
    identity = {'format_version': FORMAT_VERSION, **asdict(spec)}
    return json.loads(json.dumps(identity))


def _meta(folder: Path, spec: DigitsSpec, counts: dict) -> dict:
    import sklearn

    return {
        'name': DATASET_NAME,
        'description': (
            'Real handwritten digits, scaled, recoloured and composed on '
            'procedural backgrounds: boxes, segmentation maps and single '
            'digits. Made by tools/dataset_converters/make_digits.py.'
        ),
        'source': (
            'sklearn.datasets.load_digits (scikit-learn, BSD-3-Clause): the '
            'test part of "Optical Recognition of Handwritten Digits", '
            'E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998'
        ),
        **_identity(spec),
        'versions': {
            'scikit-learn': sklearn.__version__,
            'numpy': np.__version__,
            'opencv': cv2.__version__,
        },
        'counts': counts,
        'segmentation': {
            'reduce_zero_label': False,
            'classes': SEGMENTATION_CLASSES,
        },
        'files': _count_files(folder) + 1,
    }


def _count_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob('*'))


@contextmanager
def _published(out: Path) -> Iterator[Path]:
    """Yield a sibling of ``out`` that takes its place if all goes well."""
    created = [folder for folder in out.parents if not folder.exists()]
    partial_out = out.with_name(f'{out.name}.partial-{getpid()}')
    try:
        shutil.rmtree(partial_out, ignore_errors=True)
        partial_out.mkdir(parents=True)
        yield partial_out
        _replace(out, partial_out)
    except BaseException:
        shutil.rmtree(partial_out, ignore_errors=True)
        for folder in created:
            with suppress(OSError):
                folder.rmdir()
        raise


def _replace(out: Path, new: Path) -> None:
    """Rename ``new`` to ``out``; what was there stays if that fails."""
    if not out.exists():
        new.rename(out)
        return
    old = out.with_name(f'{out.name}.old-{getpid()}')
    try:
        out.rename(old)
        new.rename(out)
    except BaseException:
        if not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old)
