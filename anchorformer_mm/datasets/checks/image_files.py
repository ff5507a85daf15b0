"""What an image file holds, found out without libraries of deep learning."""

import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from PIL import Image
from PIL.ExifTags import Base

# From here on only the header is read: a copy takes 300 MB.
HUGE = 100_000_000
# What OpenCV refuses, unless environment variables say otherwise.
OPENCV_LIMIT = 1 << 30
OPENCV_SIDE = 1 << 20
# What OpenCV decodes wherever Pillow does. Of others, PNG above all, it
# checks sums that Pillow passes over.
_JPEG = ('JPEG', 'MPO')
# What Pillow may take a file for, whatever its name: what loaders read. It
# knows more, of which EPS starts Ghostscript, a program that the file is for.
_FORMATS = (
    *('JPEG', 'PNG', 'BMP', 'DIB', 'GIF', 'WEBP', 'TIFF', 'PPM', 'SUN'),
    *('JPEG2000', 'AVIF', 'ICO', 'ICNS', 'PCX', 'SGI', 'QOI', 'TGA'),
)


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
    every byte of them. OpenCV, which the loaders use, says nothing of one
    that ends early: it fills the rest with grey. Pillow does. Other files are
    decoded by OpenCV as well, which refuses some that Pillow takes.

    Args:
        path: A file on this machine.
        loader: What will read it in a run.
        decode: Whether to look beyond the header; images from :data:`HUGE`
            pixels on are not decoded.
    """
    if problem := place_problem(path):
        return problem
    with _any_size():
        try:
            image = Image.open(path, formats=_known_formats())
        # Plugins of Pillow raise what they like.
        except Exception as error:
            return _without_pillow(path, loader, error)
        with image:
            return _read(path, image, loader, decode)


def place_problem(path: str) -> ImageFacts | None:
    """What is wrong with a path, None if it is of a file to be read."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ImageFacts(problem='image-missing', detail='is not there')
    # Of names that no file can have it is a ValueError.
    except (OSError, ValueError) as error:
        detail = f'cannot be read ({_reason(error)})'
        return ImageFacts(problem='image-unreadable', detail=detail)
    if stat.S_ISREG(mode):
        return None
    # Reading a pipe waits for a writer, and some devices have no end.
    detail = 'is a folder' if stat.S_ISDIR(mode) else 'is no regular file'
    return ImageFacts(problem='image-unreadable', detail=detail)


@cache
def _known_formats() -> tuple[str, ...]:
    """Those of :data:`_FORMATS` with which Pillow was built."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


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
    pixels = size[0] * size[1]
    by_opencv = loader.backend == 'cv2'
    if by_opencv and (pixels > OPENCV_LIMIT or max(size) > OPENCV_SIDE):
        return ImageFacts(
            size,
            problem='image-unreadable',
            detail=f'has {size[0]}x{size[1]} pixels; OpenCV reads up to '
            f'{OPENCV_LIMIT}, and {OPENCV_SIDE} in a row or column',
        )
    is_decoded = decode and pixels < HUGE
    # TIFF files are turned, and PNG files read to their end, when decoded.
    if image.format != 'PNG':
        orientation = _orientation(image)
    if is_decoded:
        try:
            image.draft('L', (1, 1))
            image.load()
        except Exception as error:
            return ImageFacts(size, **_decoding_problem(error))
    if image.format == 'PNG':
        orientation = _orientation(image)
    is_turned = orientation >= 5 and loader.turns
    loaded = size[::-1] if is_turned else size
    if by_opencv and image.format not in _JPEG and (is_decoded or is_turned):
        seen = _by_opencv(path)
        if is_decoded and seen is None:
            return ImageFacts(
                size,
                problem='image-unreadable',
                detail=f'is {image.format} that OpenCV does not decode',
            )
        # Whether it turns these depends on its version.
        loaded = seen or size
    return ImageFacts(size, loaded, mode, is_deep, orientation)


def _is_deep(image: Image.Image) -> bool:
    """Pillow opens what has colours and 16 bits as RGB of 8."""
    layout = ' '.join(str(tile[3]) for tile in image.tile)
    return image.mode[0] in 'IF' or ';16' in layout


def _orientation(image: Image.Image) -> int:
    """The tag of EXIF, 1 if there is none or it is behind the pixels."""
    try:
        # That of PNG files would decode them.
        value = Image.Image.getexif(image).get(Base.Orientation, 1)
    # Loaders, too, pass over EXIF data that cannot be parsed.
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def _decoding_problem(error: Exception) -> dict[str, str]:
    reason = _reason(error)
    if re.search('truncated|unexpected end', reason, re.IGNORECASE):
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
