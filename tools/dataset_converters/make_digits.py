"""Make the embedded data set, "digits": real handwriting, no download.

All of it or nothing is written. Every image is drawn from a generator seeded
with its kind, split and number, so it does not matter which process draws it,
or when.

python tools/dataset_converters/make_digits.py --out data/digits
"""

import argparse
import json
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from rich.console import Console
from rich.progress import Progress

from anchorformer_mm.datasets.digits import (
    DIGIT_CLASSES,
    MIN_DIGIT_HEIGHT,
    load_scans,
    make_scene,
    make_single,
)
from anchorformer_mm.utils.errors import UsageError, run_command_line

DATASET_NAME = 'anchorformer_mm digits'
FORMAT_VERSION = 1
META_NAME = 'meta.json'
SOURCE = (
    'sklearn.datasets.load_digits (scikit-learn, BSD-3-Clause): the test part '
    'of "Optical Recognition of Handwritten Digits", E. Alpaydin and '
    'C. Kaynak, UCI Machine Learning Repository, 1998'
)
SPLITS = ('train', 'val')
SINGLE_SIZE = (64, 64)  # of a classification image, px

_SCENES, _SINGLES = 0, 1  # set the generators of the two kinds apart
_MIN_SCENE_SIDE = 64
# Without chroma subsampling: inks keep their colour along the edges.
_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR)
_JPEG += (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,)


@dataclass(frozen=True)
class DigitsSpec:
    """Arguments that decide every byte of the data set.

    Args:
        num_train: Number of training scenes.
        num_val: Number of validation scenes.
        scene_size: Width and height of a scene in px, each at least 64.
        digit_height: Smallest and largest height of a digit in px; None for
            16 and half the scene's shorter side.
        seed: Not negative.

    Raises:
        UsageError: An argument is out of its range.
    """

    num_train: int = 2000
    num_val: int = 300
    scene_size: tuple[int, int] = (192, 192)
    digit_height: tuple[int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (('num_train', 1), ('num_val', 1), ('seed', 0)):
            value = getattr(self, name)
            if value < least:
                text = f'{name} must be at least {least}, got {value}'
                raise UsageError(text)
        width, height = self.scene_size
        least, shorter = _MIN_SCENE_SIDE, min(width, height)
        if shorter < least:
            raise UsageError(
                f'scene_size must be at least {least} px on both sides, got '
                f'{width} x {height}'
            )
        least, most = MIN_DIGIT_HEIGHT, shorter * 3 // 4
        low, high = self.digit_height or (least, least)
        if not least <= low <= high <= most:
            raise UsageError(
                f'digit_height must be {least} <= MIN <= MAX <= {most} px, '
                'three quarters of the shorter side of a scene, got '
                f'{low} {high}'
            )

    def num_scenes(self, split: str) -> int:
        """Return the number of scenes of ``'train'`` or ``'val'``."""
        return {'train': self.num_train, 'val': self.num_val}[split]


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

    The maps hold 11 classes with the background as 0
    (``reduce_zero_label=False``) and show visible strokes only. A COCO box is
    tight around the whole stroke, its segmentation that stroke as uncompressed
    RLE, its area the stroke's pixels. The labels of ``DIGIT_CLASSES`` are in
    ``classification/meta``: folders sort by name. Train and validation share
    no scan.

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
        UsageError: ``workers`` is less than 1, ``out`` is not ours, or
            ``force`` is needed.
    """
    if workers < 1:
        raise UsageError(f'workers must be at least 1, got {workers}')
    spec = spec or DigitsSpec()
    out = Path(out).expanduser().resolve()
    if is_there(out, spec, force):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    bar = Progress(console=Console(stderr=True), disable=not progress)
    beside = TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent)
    with beside as temporary, bar, _mapping(workers) as run:
        folder = Path(temporary, 'new')

        def run_all(function: Callable, items: range, label: str) -> list:
            results = run(function, items)
            return list(bar.track(results, len(items), description=label))

        for split in SPLITS:
            _write_split(run_all, folder, spec, split)
        meta = {'name': DATASET_NAME, 'source': SOURCE, **_identity(spec)}
        _write_json(folder / META_NAME, meta)
        if out.exists():
            out.rename(Path(temporary, 'old'))
        folder.rename(out)
    return True


def encode_rle(mask: np.ndarray) -> dict:
    """Encode a mask as COCO's uncompressed RLE.

    Args:
        mask: Shape (H, W), bool.

    Returns:
        dict: ``size`` [H, W] and ``counts``, the lengths of the runs column
        by column, of which the first is background and may be 0.
    """
    pixels = mask.ravel(order='F')
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(edges, prepend=0, append=pixels.size).tolist()
    counts = [0, *counts] if pixels[0] else counts
    return {'size': list(mask.shape), 'counts': counts}


def _write_split(
    run: Callable, folder: Path, spec: DigitsSpec, split: str
) -> None:
    """Write one split of all three tasks."""
    singles = folder / 'classification'
    paths = ['annotations', split, f'semantic/{split}', 'classification/meta']
    paths += [f'classification/{split}/{name}' for name in DIGIT_CLASSES]
    for path in paths:
        (folder / path).mkdir(parents=True, exist_ok=True)
    scenes = run(
        partial(_write_scene, folder, spec, split),
        range(spec.num_scenes(split)),
        f'{split} scenes',
    )
    path = folder / f'annotations/instances_{split}.json'
    _write_json(path, _coco(spec, split, scenes))
    lines = run(
        partial(_write_single, singles / split, spec, split),
        range(len(_scans(split))),
        f'{split} single digits',
    )
    (singles / f'meta/{split}.txt').write_text('\n'.join(lines) + '\n')


# Loaded once in each process.
_scans = cache(load_scans)


def _write_scene(
    folder: Path, spec: DigitsSpec, split: str, index: int
) -> list[dict]:
    """Write a scene and its map; return its COCO annotations without ids."""
    seed = [spec.seed, _SCENES, SPLITS.index(split), index]
    rng = np.random.default_rng(seed)
    scene = make_scene(rng, _scans(split), spec.scene_size, spec.digit_height)
    name = f'{index + 1:06d}'
    _write_image(folder / split / f'{name}.jpg', scene.image, _JPEG)
    _write_image(folder / 'semantic' / split / f'{name}.png', scene.semantic)
    return [
        {
            'category_id': int(scene.labels[i]) + 1,
            'bbox': scene.boxes[i].tolist(),
            'area': int(mask.sum()),
            'iscrowd': 0,
            'segmentation': encode_rle(mask),
            'visible': round(float(scene.visible[i]), 4),
            'scan': int(scene.scans[i]),
        }
        for i, mask in enumerate(scene.masks)
    ]


def _write_single(folder: Path, spec: DigitsSpec, split: str, row: int) -> str:
    """Write the image of one scan; return its line in the list."""
    scans = _scans(split)
    scan, label = int(scans.indices[row]), int(scans.labels[row])
    seed = [spec.seed, _SINGLES, SPLITS.index(split), scan]
    rng = np.random.default_rng(seed)
    image = make_single(rng, scans.images[row], SINGLE_SIZE)
    name = f'{DIGIT_CLASSES[label]}/{scan:04d}.png'
    _write_image(folder / name, image)
    return f'{name} {label}'


def _coco(spec: DigitsSpec, split: str, scenes: list[list[dict]]) -> dict:
    """Number images and annotations from 1 and add what COCO asks for."""
    width, height = spec.scene_size
    size = {'width': width, 'height': height}
    digits = [
        {'image_id': number, **digit}
        for number, scene in enumerate(scenes, 1)
        for digit in scene
    ]
    return {
        'info': {'description': f'{DATASET_NAME}, {split}'},
        'licenses': [],
        'images': [
            {'id': number, 'file_name': f'{number:06d}.jpg', **size}
            for number in range(1, len(scenes) + 1)
        ],
        'annotations': [
            {'id': number, **digit} for number, digit in enumerate(digits, 1)
        ],
        'categories': [
            {'id': number, 'name': name, 'supercategory': 'digit'}
            for number, name in enumerate(DIGIT_CLASSES, 1)
        ],
    }


def _write_image(
    path: Path, image: np.ndarray, options: tuple[int, ...] = ()
) -> None:
    # Not cv2.imwrite, which reports a full disk with no more than False.
    path.write_bytes(cv2.imencode(path.suffix, image, options)[1].tobytes())


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, separators=(',', ':')) + '\n')


@contextmanager
def _mapping(workers: int) -> Iterator[Callable]:
    """Yield a ``map`` on some processes, which end with the context."""
    if workers == 1:
        yield map
        return
    spawn = multiprocessing.get_context('spawn')
    pool = ProcessPoolExecutor(workers, spawn, _start_worker)
    try:
        yield partial(pool.map, chunksize=16)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C reaches every process of a terminal; the first one answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def is_there(out: Path, spec: DigitsSpec, force: bool) -> bool:
    """Tell if ``out`` needs no work; refuse to replace what is not ours."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        meta = json.loads((out / META_NAME).read_text())
        ours = meta['name'] == DATASET_NAME
    except (OSError, ValueError, TypeError, KeyError):
        ours = False
    if not ours:
        raise UsageError(
            f'{out} exists and is not a digits data set: name another folder'
        )
    if force:
        return False
    other = [
        f'of {key} {meta.get(key)}, not {value}'
        for key, value in _identity(spec).items()
        if meta.get(key) != value
    ]
    if other:
        raise UsageError(
            f'{out} holds a digits data set {"; ".join(other)}: name '
            'another folder, or replace it with --force'
        )
    return True


def _identity(spec: DigitsSpec) -> dict:
    """Return what two equal data sets have in common, as JSON gives it."""
    identity = {'format_version': FORMAT_VERSION, **asdict(spec)}
    return json.loads(json.dumps(identity))


def parse_args() -> argparse.Namespace:
    default = DigitsSpec()
    parser = argparse.ArgumentParser(
        description='Make the digits data set: COCO boxes, segmentation maps '
        'and single digits, from the handwriting that scikit-learn carries.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--out', default='data/digits', help='folder to make')
    add('--num-train', type=int, default=default.num_train, help='scenes')
    add('--num-val', type=int, default=default.num_val, help='scenes')
    size, pair = default.scene_size, ('MIN', 'MAX')
    add('--scene-size', type=int, nargs=2, default=size, help='W H, px')
    text = 'px; None is 16 and half the shorter side of a scene'
    add('--digit-height', type=int, nargs=2, metavar=pair, help=text)
    add('--seed', type=int, default=default.seed, help='of every choice')
    add('--workers', type=int, default=1, help='processes')
    text = 'replace a digits data set that was made with other arguments'
    add('--force', action='store_true', help=text)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # A polite kill cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    spec = DigitsSpec(
        num_train=args.num_train,
        num_val=args.num_val,
        scene_size=tuple(args.scene_size),
        digit_height=args.digit_height and tuple(args.digit_height),
        seed=args.seed,
    )
    how = dict(workers=args.workers, force=args.force, progress=True)
    try:
        written = write_digits(args.out, spec, **how)
    except ImportError as error:
        raise UsageError(str(error)) from error
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    there = 'already there, made with the same arguments'
    print(f'{args.out}: {"written" if written else there}')


if __name__ == '__main__':
    run_command_line(main)
