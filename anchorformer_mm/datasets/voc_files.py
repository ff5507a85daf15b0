"""Reading a folder in the layout of Pascal VOC.

``Annotations/<id>.xml``, ``JPEGImages/<id>.jpg`` (or another suffix) and
``ImageSets/Main/<split>.txt``, which lists one id a line.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2

from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.listing import listing

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


@dataclass(frozen=True)
class VOCObject:
    """One object of an annotation.

    Args:
        name: Its class.
        corners: ``xmin, ymin, xmax, ymax`` as the file has them, px.
        difficult: Whether it is marked as hard to recognise.
    """

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class VOCImage:
    """An image and its annotation.

    Args:
        file_name: Of the image, relative to ``JPEGImages``.
        width: In px.
        height: In px.
        objects: In the order of the annotation; an image may have none.
        annotation: Path of the annotation, to name it in messages.
    """

    file_name: str
    width: int
    height: int
    objects: tuple[VOCObject, ...]
    annotation: Path


class _PlainTree(ElementTree.TreeBuilder):
    """Refuses what declares entities: an old expat expands them all."""

    def doctype(self, *_: str | None) -> None:
        raise UsageError('has a document type, which no annotation needs')


def read_split(root: str | Path, split: str) -> list[VOCImage]:
    """Read the images of one list of a VOC folder.

    Args:
        root: Folder with ``Annotations``, ``JPEGImages`` and ``ImageSets``.
        split: Name of a list in ``ImageSets/Main``.

    Returns:
        list[VOCImage]: In the order of the list; an id that is listed twice
        is there once.

    Raises:
        UsageError: There is no such list, or nothing in it, or what lies
            outside the folder; an annotation or
            an image is missing; an annotation is not well-formed or lacks
            something; or an image whose size no annotation tells does not
            decode. One message names the first few files.
    """
    root = Path(root)
    images, errors = [], []
    for image_id in _image_ids(root, split):
        try:
            images.append(_read_image(root, image_id))
        except UsageError as error:
            errors.append(str(error))
    if errors:
        raise UsageError(
            f'{len(errors)} of {len(images) + len(errors)} images of '
            f'{split} cannot be used: {listing(errors)}'
        )
    return images


def _image_ids(root: Path, split: str) -> list[str]:
    lists = root / 'ImageSets' / 'Main'
    path = lists / f'{split}.txt'
    if not path.is_file():
        found = listing(
            sorted(p.stem for p in lists.glob('*.txt')) or ['none']
        )
        raise UsageError(f'{path} does not exist; lists there: {found}')
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError:
        raise UsageError(f'{path} must be text in UTF-8') from None
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise UsageError(f'{path} lists no image')
    outside = [
        i for i in ids if Path(i).is_absolute() or '..' in Path(i).parts
    ]
    if outside:
        raise UsageError(
            f'{path} must list images of {root}, not {listing(outside)}'
        )
    return list(dict.fromkeys(ids))


def _read_image(root: Path, image_id: str) -> VOCImage:
    annotation = root / 'Annotations' / f'{image_id}.xml'
    images = root / 'JPEGImages'
    name = next(filter(lambda n: (images / n).is_file(), _names(image_id)), '')
    if not name:
        raise UsageError(f'{images / image_id}.jpg does not exist')
    try:
        tree = parse_annotation(annotation)
        width, height = _size(tree, images / name)
        objects = tuple(map(read_object, tree.findall('object')))
    except UsageError as error:
        raise UsageError(f'{annotation} {error}') from None
    return VOCImage(name, width, height, objects, annotation)


def _names(image_id: str) -> Iterator[str]:
    for suffix in _SUFFIXES:
        yield image_id + suffix
        yield image_id + suffix.upper()


def parse_annotation(path: Path) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_PlainTree())
    try:
        tree = ElementTree.parse(path, parser).getroot()
    except FileNotFoundError:
        raise UsageError('does not exist') from None
    # The others are what it raises for encodings.
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise UsageError(f'is not well-formed XML ({error})') from None
    if tree.tag != 'annotation':
        raise UsageError(f'must hold <annotation>, got <{tree.tag}>')
    return tree


def _size(tree: ElementTree.Element, image: Path) -> Sequence[int]:
    """Width and height, from the image if the annotation has none or 0."""
    names = ('size/width', 'size/height')
    if all((tree.findtext(name) or '').strip() for name in names):
        size = [int(_number(tree, name)) for name in names]
        if min(size) > 0:
            return size
    # Turned by its EXIF data, as the loaders of mmcv do.
    pixels = cv2.imread(str(image))
    if pixels is None:
        raise UsageError(f'has no size, and {image} does not decode')
    return pixels.shape[1::-1]


def read_object(element: ElementTree.Element) -> VOCObject:
    name = (element.findtext('name') or '').strip()
    if not name:
        raise UsageError('has an object without a name')
    corners = tuple(_number(element, f'bndbox/{c}') for c in _CORNERS)
    difficult = (element.findtext('difficult') or '').strip()
    return VOCObject(
        name, corners, bool(difficult and _number(element, 'difficult'))
    )


def _number(element: ElementTree.Element, path: str) -> float:
    text = element.findtext(path)
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(
            f'must have a number as {element.tag}/{path}, got {text!r}'
        )
    return value
