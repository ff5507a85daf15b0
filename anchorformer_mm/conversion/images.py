"""Images of a folder as a model of a config sees them, without its data."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import mmcv
import torch
from mmengine.model import ImgDataPreprocessor
from torch import Tensor

from anchorformer_mm.utils.errors import UsageError

_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def find_images(folder: str | Path, count: int, seed: int = 0) -> list[Path]:
    """Choose images below a folder at random.

    Args:
        folder: Searched with all folders in it.
        count: Images wanted; all of them where there are fewer.
        seed: Of the choice.

    Raises:
        UsageError: There is no image.
    """
    files = sorted(
        path
        for path in Path(folder).rglob('*')
        if path.suffix.lower() in _SUFFIXES and path.is_file()
    )
    if not files:
        raise UsageError(
            f'no image ({", ".join(_SUFFIXES)}) found in the folder {folder}'
        )
    return sorted(random.Random(seed).sample(files, min(count, len(files))))


def image_batches(
    paths: Sequence[Path],
    size: tuple[int, int],
    data_preprocessor: dict,
    batch_size: int = 8,
) -> Iterator[Tensor]:
    """Read images, resize and normalise them.

    They are squeezed to ``size`` whatever their shape: what the test pipeline
    of a config does instead (crops, or boxes to keep) depends on the task.

    Args:
        paths: Image files.
        size: Height and width, px.
        data_preprocessor: As in the configs of the OpenMMLab libraries; its
            ``mean``, ``std`` and order of the channels are used.
        batch_size: Images at a time.

    Yields:
        Tensor: Shape (B, 3, H, W).

    Raises:
        UsageError: A file holds no image that can be read.
    """
    normalise = ImgDataPreprocessor(
        mean=data_preprocessor.get('mean'),
        std=data_preprocessor.get('std'),
        # mmpretrain has one name for it, the others have another.
        bgr_to_rgb=data_preprocessor.get(
            'bgr_to_rgb', data_preprocessor.get('to_rgb', False)
        ),
        rgb_to_bgr=data_preprocessor.get('rgb_to_bgr', False),
    )
    for start in range(0, len(paths), batch_size):
        images = [
            _read(path, size) for path in paths[start : start + batch_size]
        ]
        yield normalise(dict(inputs=images))['inputs']


def _read(path: Path, size: tuple[int, int]) -> Tensor:
    """One image, BGR, uint8, (3, H, W)."""
    try:
        image = mmcv.imread(path)
    except (cv2.error, OSError):
        image = None
    if image is None:
        raise UsageError(f'{path} is no image that can be read')
    image = mmcv.imresize(image, size[::-1])
    return torch.from_numpy(image).permute(2, 0, 1)
