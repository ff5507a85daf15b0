"""Reading the images and label maps of a data set, for what they hold."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from mmcv.transforms import BaseTransform, LoadAnnotations
from mmengine.dataset import BaseDataset
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base

FEW = 5


@dataclass(frozen=True)
class Reading:
    """What one image and its label map turned out to be.

    Args:
        path: The file that ``problem`` is about, else the label map.
        ids: The ids of the label map as a head gets them; None if it was
            not, or could not be, read.
        problem: What is wrong with the file, as files are grouped by it.
        detail: What of it holds for this file alone.
    """

    path: str
    ids: tuple[int, ...] | None = None
    problem: str = ''
    detail: str = ''


def first_few(words: Sequence[object]) -> str:
    """The first of some words or numbers, and how many more there are."""
    more = len(words) - FEW
    end = f' and {more} more' if more > 0 else ''
    return ', '.join(map(str, words[:FEW])) + end


def read_files(dataset: BaseDataset) -> list[Reading]:
    """Read all label maps of a data set, and the headers of its images.

    Args:
        dataset: With a pipeline, whose loaders read the files; without a
            ``LoadAnnotations`` in it no label map is read.

    Returns:
        list[Reading]: One each image, in the order of the data set.
    """
    transforms = dataset.pipeline.transforms
    load_image = next(iter(transforms), None)
    load_map = next(
        (t for t in transforms if isinstance(t, LoadAnnotations)), None
    )

    def read(index: int) -> Reading:
        return _read(dataset.get_data_info(index), load_image, load_map)

    # Decoders let other threads run.
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        return list(pool.map(read, range(len(dataset))))


def _require_file(path: str) -> None:
    """Raise where reading would wait for a writer, or for ever."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError('no regular file')


def _read(
    info: dict,
    load_image: BaseTransform | None,
    load_map: BaseTransform | None,
) -> Reading:
    """Read the header of an image, and its label map if there is one."""
    path = info['img_path']
    try:
        _require_file(path)
        size = _image_size(info, load_image)
        if load_map is None or 'seg_map_path' not in info:
            return Reading(path)
        path = info['seg_map_path']
        _require_file(path)
        wide = _wide_ids(path)
        label_map = load_map(info)['gt_seg_map']
    # Loaders of configs raise what they like.
    except Exception as error:
        return Reading(
            path,
            problem='images or label maps cannot be read',
            detail=f'({_reason(error)})',
        )
    if wide:
        return Reading(
            path,
            problem='label maps have ids beyond 255, but mmseg reads 8 bits',
            detail=f'({first_few(wide)})',
        )
    if label_map.ndim != 2:
        return Reading(
            path,
            problem='label maps have colours instead of one id a pixel',
            detail=f'(shape {label_map.shape})',
        )
    height, width = label_map.shape
    if (width, height) != size:
        return Reading(
            path,
            problem='label maps differ in size from their images',
            detail=f'({width}x{height}, not {size[0]}x{size[1]})',
        )
    return Reading(path, ids=_ids(label_map))


def _ids(label_map: np.ndarray) -> tuple[int, ...]:
    """The different values of a map of shape (H, W)."""
    if label_map.dtype == np.uint8:
        # Many times faster than np.unique.
        values = np.flatnonzero(np.bincount(label_map.ravel()))
    else:
        values = np.unique(label_map)
    return tuple(values.tolist())


def _image_size(
    info: dict, load_image: BaseTransform | None
) -> tuple[int, int]:
    """Width and height of an image as the pipeline gets it."""
    try:
        with Image.open(info['img_path']) as image:
            width, height = image.size
            turned = image.getexif().get(Base.Orientation, 1) >= 5
    except Exception:
        # Not on this disk, not for PIL or not at all: the loader knows.
        height, width = load_image(dict(info))['img'].shape[:2]
        return width, height
    # What PIL does not do by itself, the loaders of mmcv do for these two.
    turns = getattr(load_image, 'color_type', None) in ('color', 'grayscale')
    return (height, width) if turned and turns else (width, height)


def _wide_ids(path: str) -> list[int]:
    """Ids that do not fit into the 8 bits to which mmseg cuts them."""
    try:
        with Image.open(path) as image:
            if not image.mode.startswith('I'):
                return []
            ids = np.unique(np.asarray(image))
    except OSError:
        # The loader will say what is wrong.
        return []
    return ids[(ids < 0) | (ids > 255)].tolist()


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return 'does not exist'
    # What mmcv does with a file that is no image.
    if isinstance(error, (UnidentifiedImageError, AttributeError)):
        return 'does not decode'
    return (str(error) or type(error).__name__).splitlines()[0]
