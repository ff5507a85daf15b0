"""Write one split of the digits: COCO boxes, ADE20K maps, ImageNet folders.

Every image is drawn from a generator seeded with its kind, split and number,
so it does not matter which process draws it, or when.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from anchorformer_mm.datasets.digits import (
    DIGIT_CLASSES,
    MIN_DIGIT_HEIGHT,
    Scans,
    default_digit_height,
    load_scans,
    make_scene,
    make_single,
)

DATASET_NAME = 'anchorformer_mm digits'
SPLITS = ('train', 'val')
SINGLE_SIZE = (64, 64)  # of a classification image, px

_SCENES, _SINGLES = 0, 1  # set the generators of the two kinds apart
_MIN_SCENE_SIDE = 64
# Without chroma subsampling: inks keep their colour along the edges.
_JPEG = (
    cv2.IMWRITE_JPEG_QUALITY,
    95,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)


@dataclass(frozen=True)
class DigitsSpec:
    """What decides every byte of the data set.

    Args:
        num_train: Number of training scenes.
        num_val: Number of validation scenes.
        scene_size: Width and height of a scene in px, each at least 64.
        digit_height: Smallest and largest height of a digit in px; None for
            16 and half the scene's shorter side.
        seed: Not negative.

    Raises:
        ValueError: An argument is out of its range.
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
                raise ValueError(
                    f'{name} must be at least {least}, got {value}'
                )
        width, height = self.scene_size
        if min(width, height) < _MIN_SCENE_SIDE:
            raise ValueError(
                f'scene_size must be at least {_MIN_SCENE_SIDE} px on both '
                f'sides, got {width} x {height}'
            )
        low, high = self.digit_height or default_digit_height(self.scene_size)
        largest = min(width, height) * 3 // 4
        if not MIN_DIGIT_HEIGHT <= low <= high <= largest:
            raise ValueError(
                f'digit_height must be {MIN_DIGIT_HEIGHT} <= MIN <= MAX <= '
                f'{largest} px, three quarters of the shorter side of a '
                f'{width} x {height} scene, got {low} {high}'
            )

    def num_scenes(self, split: str) -> int:
        """Return the number of scenes of ``'train'`` or ``'val'``."""
        return {'train': self.num_train, 'val': self.num_val}[split]


def write_split(
    run: Callable, folder: Path, spec: DigitsSpec, split: str
) -> dict[str, int]:
    """Write one split of all three tasks and return its counts."""
    scans = load_scans(split)
    coco = _write_scenes(run, folder, spec, split, scans)
    _write_singles(run, folder, spec, split, scans)
    shown = {digit['image_id'] for digit in coco['annotations']}
    return {
        'scenes': len(coco['images']),
        'digits': len(coco['annotations']),
        'empty_scenes': len(coco['images']) - len(shown),
        'single_digits': len(scans),
    }


def _write_scenes(
    run: Callable, folder: Path, spec: DigitsSpec, split: str, scans: Scans
) -> dict:
    """Write scenes, maps and boxes; return what the COCO file holds."""
    _make_folders(folder, 'annotations', split, f'semantic/{split}')
    scenes = run(
        partial(_write_scene, folder, spec, split, scans),
        range(spec.num_scenes(split)),
        f'{split} scenes',
    )
    coco = _coco(spec, split, scenes)
    write_json(folder / f'annotations/instances_{split}.json', coco)
    return coco


def _write_singles(
    run: Callable, folder: Path, spec: DigitsSpec, split: str, scans: Scans
) -> None:
    """Write each scan as an image, and the list of images and labels."""
    root = folder / 'classification'
    _make_folders(root, 'meta', *(f'{split}/{n}' for n in DIGIT_CLASSES))
    lines = run(
        partial(_write_single, root / split, spec, split, scans),
        range(len(scans)),
        f'{split} single digits',
    )
    (root / f'meta/{split}.txt').write_text('\n'.join(lines) + '\n')


def _write_scene(
    folder: Path, spec: DigitsSpec, split: str, scans: Scans, index: int
) -> list[dict]:
    """Write a scene and its map; return its COCO annotations without ids."""
    rng = np.random.default_rng(
        [spec.seed, _SCENES, SPLITS.index(split), index]
    )
    scene = make_scene(rng, scans, spec.scene_size, spec.digit_height)
    name = _scene_name(index)
    _write_image(folder / split / f'{name}.jpg', scene.image, _JPEG)
    _write_image(folder / 'semantic' / split / f'{name}.png', scene.semantic)
    return [
        {
            'category_id': int(label) + 1,
            'bbox': box.tolist(),
            'area': int(mask.sum()),
            'iscrowd': 0,
            'segmentation': encode_rle(mask),
            'visible': round(float(visible), 4),
            'scan': int(scan),
        }
        for label, box, mask, visible, scan in zip(
            scene.labels,
            scene.boxes,
            scene.masks,
            scene.visible,
            scene.scans,
            strict=True,
        )
    ]


def _write_single(
    folder: Path, spec: DigitsSpec, split: str, scans: Scans, row: int
) -> str:
    """Write the image of one scan; return its line in the list."""
    scan, label = int(scans.indices[row]), int(scans.labels[row])
    rng = np.random.default_rng(
        [spec.seed, _SINGLES, SPLITS.index(split), scan]
    )
    image = make_single(rng, scans.images[row], SINGLE_SIZE)
    name = f'{DIGIT_CLASSES[label]}/{scan:04d}.png'
    _write_image(folder / name, image)
    return f'{name} {label}'


def _coco(spec: DigitsSpec, split: str, scenes: list[list[dict]]) -> dict:
    """Number images and annotations from 1 and add what COCO asks for."""
    width, height = spec.scene_size
    images = [
        {
            'id': index + 1,
            'file_name': f'{_scene_name(index)}.jpg',
            'width': width,
            'height': height,
        }
        for index in range(len(scenes))
    ]
    digits = [
        {'image_id': image['id'], **digit}
        for image, scene in zip(images, scenes, strict=True)
        for digit in scene
    ]
    return {
        'info': {'description': f'{DATASET_NAME}, {split}'},
        'licenses': [],
        'images': images,
        'annotations': [
            {'id': number, **digit} for number, digit in enumerate(digits, 1)
        ],
        'categories': [
            {'id': number, 'name': name, 'supercategory': 'digit'}
            for number, name in enumerate(DIGIT_CLASSES, 1)
        ],
    }


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
    return {
        'size': list(mask.shape),
        'counts': [0, *counts] if pixels[0] else counts,
    }


def _scene_name(index: int) -> str:
    return f'{index + 1:06d}'


def _make_folders(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)


def _write_image(
    path: Path, image: np.ndarray, options: tuple[int, ...] = ()
) -> None:
    # Not cv2.imwrite, which reports a full disk with no more than False.
    path.write_bytes(cv2.imencode(path.suffix, image, options)[1].tobytes())


def write_json(path: Path, content: dict, indent: int | None = None) -> None:
    """Write a JSON file, on one line without ``indent``."""
    separators = None if indent else (',', ':')
    text = json.dumps(content, indent=indent, separators=separators)
    path.write_text(text + '\n')
