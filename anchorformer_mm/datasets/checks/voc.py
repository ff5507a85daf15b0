"""Findings about annotations in the layout of Pascal VOC."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

from mmengine.dataset import BaseDataset

from anchorformer_mm.datasets.checks.boxes import box_problem
from anchorformer_mm.datasets.checks.classes import name_findings
from anchorformer_mm.datasets.checks.findings import (
    WARNING,
    Finding,
    found,
)
from anchorformer_mm.datasets.checks.images import Contents, ImageRecord
from anchorformer_mm.datasets.voc_files import parse_annotation, read_object
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.listing import listing


def read_voc(dataset: BaseDataset, split: str) -> Contents:
    """Read what an ``XMLDataset`` lists, and check it.

    Args:
        dataset: Built, but not initialised.
        split: ``'train'``, ``'val'`` or ``'test'``.
    """
    file = dataset.ann_file
    try:
        ids = Path(file).read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError:
        finding = found('annotation-file', file, 'is not text in UTF-8')
        return Contents(findings=[finding])
    contents = Contents()
    tell = contents.findings.append
    if not ids:
        tell(found('set-empty', file, 'lists no image'))
    for image_id, count in Counter(ids).items():
        if count > 1:
            tell(found('image-twice', file, f'lists {image_id} {count} times'))
    root = Path(dataset.sub_data_root)
    names = Counter()
    for image_id in dict.fromkeys(ids):
        image = root / dataset.img_subdir / f'{image_id}.jpg'
        annotation = root / dataset.ann_subdir / f'{image_id}.xml'
        size = None
        try:
            # Reading a pipe waits for a writer.
            if annotation.exists() and not annotation.is_file():
                raise UsageError('is no regular file')
            tree = parse_annotation(annotation)
            size = _size(tree)
            contents.findings += _objects(tree, annotation, size, names, split)
        except (OSError, UsageError) as error:
            tell(found('annotation-file', annotation, str(error)))
        contents.images.append(ImageRecord(str(image), size))
    classes = dataset.metainfo.get('classes') or ()
    if ids and not any(names.values()):
        tell(found('set-empty', file, 'lists no image with an object'))
    elif names and not any(name in names for name in classes):
        there = listing(map(repr, names))
        tell(
            found(
                'class-unknown',
                file,
                f'lists no object of any class of metainfo; there are {there}',
            )
        )
    counts = dict.fromkeys(classes, 0) | names
    contents.findings += name_findings(
        classes, counts, file, is_training=split == 'train'
    )
    return contents


def _size(tree: Element) -> tuple[int, int] | None:
    """Width and height as mmdet takes them; None for those of the image."""
    if tree.find('size') is None:
        return None
    texts = [tree.findtext(f'size/{side}') for side in ('width', 'height')]
    try:
        return int(texts[0]), int(texts[1])
    except (TypeError, ValueError):
        raise UsageError(
            f'must have whole numbers as size, got {texts}'
        ) from None


def _objects(
    tree: Element,
    annotation: Path,
    size: tuple[int, int] | None,
    names: Counter,
    split: str,
) -> Iterator[Finding]:
    """Check the objects of an image, and count their classes."""
    tell = partial(found, file=annotation)
    boxes = set()
    for index, element in enumerate(tree.findall('object')):
        try:
            item = read_object(element)
        except UsageError as error:
            yield tell('annotation-entry', text=f': object {index} {error}')
            continue
        # As mmdet takes it, which passes over a name with spaces around it.
        name = element.findtext('name')
        names[name] += 1
        if (name, item.corners) in boxes:
            text = f': object {index} ({item.name}) has the box of another one'
            yield tell('box-twice', text=text)
        boxes.add((name, item.corners))
        # VOC counts pixels from 1, and mmdet cuts fractions off.
        x1, y1, x2, y2 = (int(corner) - 1 for corner in item.corners)
        problem = box_problem([x1, y1, x2 - x1, y2 - y1], size)
        if problem is not None:
            kind, text = problem
            passed_over = kind == 'box-without-area' and split == 'train'
            yield tell(
                kind,
                text=f': object {index} ({item.name}) has the {text}',
                level=WARNING if passed_over else None,
            )
