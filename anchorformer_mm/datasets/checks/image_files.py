"""What an image file holds, found out without libraries of deep learning."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image
from PIL.ExifTags import Base

# From here on only the header is read: a copy takes 300 MB.
HUGE = 100_000_000
# What OpenCV refuses, unless an environment variable says otherwise.
OPENCV_LIMIT = 1 << 30
# What OpenCV is known to decode wherever Pillow does.
_COMMON = ('JPEG', 'MPO', 'PNG', 'BMP')
_JPEG = ('JPEG', 'MPO')


@dataclass(frozen=True)
class Loader:
    """How the pipeline of a data set reads images.

    Args:
        color_type: As ``LoadImageFromFile`` has it.
        backend: Its ``imdecode_backend``.
    """

    color_type: str = 'color'
    backend: str = 'cv2'

    @property
    def turns(self) -> bool:
        """Whether it turns images as their EXIF data says."""
        turning = self.backend in ('cv2', 'pillow')
        return turning and self.color_type in ('color', 'grayscale')


@dataclass(frozen=True)
class ImageFacts:
    """What one file turned out to be.

    Args:
        size: Width and height as stored, px; None if it cannot be read.
        loaded: The same as the loader gives them.
        mode: Pillow's name of the kind of pixels, '' if it cannot tell.
        is_deep: Whether a channel has more than 8 bits.
        orientation: The tag of EXIF; 1 is upright.
        problem: The kind of finding that keeps it from being read, or ''.
        detail: What of that holds for this file.
    """

    size: tuple[int, int] | None = None
    loaded: tuple[int, int] | None = None
    mode: str = ''
    is_deep: bool = False
    orientation: int = 1
    problem: str = ''
    detail: str = ''


def read_image(path: str, loader: Loader, decode: bool) -> ImageFacts:
    """Read the header of an image and, if asked for, decode it.

    JPEG files are decoded at an eighth of their size, which goes through
    every byte of them. OpenCV, which the loaders use, says nothing of a file
    that ends early: it fills the rest with grey. Pillow does.

    Args:
        path: A file on this machine.
        loader: What will read it in a run.
        decode: Whether to look beyond the header; images from :data:`HUGE`
            pixels on are not decoded.
    """
    with _any_size():
        try:
            image = Image.open(path)
        except FileNotFoundError:
            return ImageFacts(problem='image-missing', detail='is not there')
        # Plugins of Pillow raise what they like.
        except Exception as error:
            return _without_pillow(path, loader, error)
        with image:
            return _read(path, image, loader, decode)


@contextmanager
def _any_size() -> Iterator[None]:
    """Take from Pillow its limit for images of strangers."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            # Broken EXIF data and the like, which hold up no loader.
            warnings.simplefilter('ignore')
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _read(
    path: str, image: Image.Image, loader: Loader, decode: bool
) -> ImageFacts:
    size, mode, is_deep = image.size, image.mode, _is_deep(image)
    orientation = _orientation(image)
    pixels = size[0] * size[1]
    if loader.backend == 'cv2' and pixels > OPENCV_LIMIT:
        return ImageFacts(
            size,
            problem='image-unreadable',
            detail=f'has {pixels} pixels; OpenCV reads up to {OPENCV_LIMIT}',
        )
    if decode and pixels < HUGE:
        try:
            image.draft('L', (1, 1))
            image.load()
        except Exception as error:
            return ImageFacts(size, **_decoding_problem(error))
        unusual = loader.backend == 'cv2' and image.format not in _COMMON
        if unusual and _by_opencv(path) is None:
            return ImageFacts(
                size,
                problem='image-unreadable',
                detail=f'is {image.format}, which OpenCV does not decode',
            )
    loaded = _loaded_size(path, image, size, orientation, loader)
    return ImageFacts(size, loaded, mode, is_deep, orientation)


def _is_deep(image: Image.Image) -> bool:
    """Pillow opens what has colours and 16 bits as RGB of 8."""
    layout = ' '.join(str(tile[3]) for tile in image.tile)
    return image.mode[0] in 'IF' or ';16' in layout


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(Base.Orientation, 1)
    # Loaders, too, pass over EXIF data that cannot be parsed.
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def _decoding_problem(error: Exception) -> dict[str, str]:
    reason = _reason(error)
    if 'truncated' in reason or 'unexpected end' in reason:
        return dict(problem='image-truncated', detail=f'ends early ({reason})')
    return dict(
        problem='image-unreadable', detail=f'does not decode ({reason})'
    )


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _by_opencv(path: str) -> tuple[int, int] | None:
    """Width and height as OpenCV reads them, None if it does not."""
    try:
        # As mmcv does; imread has troubles of its own with turned TIFFs.
        content = np.fromfile(path, np.uint8)
        pixels = cv2.imdecode(content, cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        return None
    return None if pixels is None else pixels.shape[1::-1]


def _without_pillow(path: str, loader: Loader, error: Exception) -> ImageFacts:
    """What OpenCV makes of a file that Pillow knows nothing of."""
    size = _by_opencv(path) if loader.backend == 'cv2' else None
    if size is not None:
        return ImageFacts(size, size)
    detail = f'cannot be read ({_reason(error)})'
    if isinstance(error, Image.UnidentifiedImageError):
        detail = 'is no image'
    return ImageFacts(problem='image-unreadable', detail=detail)


def _loaded_size(
    path: str,
    image: Image.Image,
    size: tuple[int, int],
    orientation: int,
    loader: Loader,
) -> tuple[int, int]:
    if orientation < 5 or not loader.turns:
        return size
    if loader.backend == 'cv2' and image.format not in _JPEG:
        # Whether it turns these depends on its version.
        return _by_opencv(path) or size
    return size[::-1]
