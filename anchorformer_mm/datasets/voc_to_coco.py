"""Annotations of Pascal VOC as those of COCO.

Boxes become what mmdet's ``VOCDataset`` makes of the same files:

- ``first_pixel`` is taken off all four coordinates, and a box is
  ``xmax - xmin`` wide, without the pixel that VOC's inclusive ``xmax`` would
  add. VOC counts pixels from 1. Files drawn with labelImg count from 0, but
  have a 1 where 0 was meant.
- Difficult objects get ``iscrowd=1``: neither learnt nor counted. COCO's
  ``ignore`` would not do, for pycocotools overwrites it by ``iscrowd``.

Unlike there, fractions of a pixel are kept and boxes without area are not.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from anchorformer_mm.datasets.digits_formats import write_json
from anchorformer_mm.datasets.voc_files import VOCImage, read_split
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import replacing
from anchorformer_mm.utils.listing import listing

SPLITS = ('train', 'val', 'test')


def convert_voc(
    root: str | Path,
    out: str | Path,
    splits: Sequence[str] = SPLITS,
    *,
    classes: Sequence[str] | None = None,
    first_pixel: int = 1,
    keep_difficult: bool = False,
    overwrite: bool = False,
) -> tuple[dict[Path, dict], list[str]]:
    """Write the lists of a VOC folder as COCO files, all of them or none.

    Args:
        root: Folder with ``Annotations``, ``JPEGImages`` and ``ImageSets``.
        out: Folder to write ``<split>.json`` to. Their ``file_name`` is
            relative to ``JPEGImages``.
        splits: Names of lists in ``ImageSets/Main``.
        classes: Names in the order of their ids, which start at 1; None for
            all that the splits have, sorted.
        first_pixel: What the files call the first pixel, 1 or 0.
        keep_difficult: Whether difficult objects are like any other.
        overwrite: Replace files that are there.

    Returns:
        tuple[dict[Path, dict], list[str]]: The files with their contents, and
        a warning for each kind of thing that was left out or looks wrong,
        with how many there are and where.

    Raises:
        UsageError: An argument is out of its range; a file to write is there;
            no class is named or found; or a reason of :func:`read_split`.
    """
    _check(splits, classes, first_pixel)
    paths = {split: Path(out) / f'{split}.json' for split in splits}
    there = [str(path) for path in paths.values() if path.exists()]
    if there and not overwrite:
        raise UsageError(f'{listing(there)} exist; --overwrite replaces them')
    images = {split: read_split(root, split) for split in splits}
    found = {o.name for i in images.values() for j in i for o in j.objects}
    if not found and classes is None:
        raise UsageError(f'no object in any image of {listing(splits)}')
    classes = sorted(found) if classes is None else classes
    names = listing(sorted(found) or ['none'])
    warnings = [
        f'no object of class {name!r}; found: {names}'
        for name in classes
        if name not in found
    ]
    contents = {}
    for split, path in paths.items():
        contents[path], notes = coco_annotations(
            images[split], classes, first_pixel, keep_difficult
        )
        info = {'description': f'{split}, converted from VOC'}
        contents[path]['info'] = info
        for kind, files in notes.items():
            where = listing(dict.fromkeys(files))
            warnings.append(f'{split}: {kind}: {len(files)}, in {where}')
    # Renamed at the end only, when all have been written.
    with ExitStack() as stack:
        for path, content in contents.items():
            write_json(stack.enter_context(replacing(path)), content)
    return contents, warnings


def coco_annotations(
    images: Sequence[VOCImage],
    classes: Sequence[str],
    first_pixel: int = 1,
    keep_difficult: bool = False,
) -> tuple[dict, dict[str, list[str]]]:
    """Turn images of VOC into ``images``, ``annotations``, ``categories``.

    Args:
        images: Those of one split, numbered from 1.
        classes: Other objects are left out.
        first_pixel: As for :func:`convert_voc`.
        keep_difficult: As for :func:`convert_voc`.

    Returns:
        tuple[dict, dict[str, list[str]]]: The contents of the COCO file, and
        for each kind of thing that was left out or looks wrong the annotation
        of each object that is so.
    """
    ids = {name: number for number, name in enumerate(classes, 1)}
    notes = defaultdict(list)
    annotations = []
    for image_id, image in enumerate(images, 1):
        for item in image.objects:
            box = tuple(corner - first_pixel for corner in item.corners)
            flaw = _flaw(box, item.name, image, ids)
            note = flaw or _doubt(box, image, first_pixel)
            if note:
                notes[note].append(image.annotation.name)
            if flaw:
                continue
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': ids[item.name],
                    'bbox': [x1, y1, x2 - x1, y2 - y1],
                    'area': (x2 - x1) * (y2 - y1),
                    'iscrowd': int(item.difficult and not keep_difficult),
                }
            )
    return {
        'images': [
            {
                'id': image_id,
                'file_name': image.file_name,
                'width': image.width,
                'height': image.height,
            }
            for image_id, image in enumerate(images, 1)
        ],
        'annotations': annotations,
        'categories': [{'id': i, 'name': name} for name, i in ids.items()],
    }, dict(notes)


def _flaw(
    box: Sequence[float], name: str, image: VOCImage, ids: dict[str, int]
) -> str:
    """Why an object is left out, or nothing.

    The boxes are those that ``CocoDataset`` passes over but ``CocoMetric``
    would count as missed.
    """
    x1, y1, x2, y2 = box
    if name not in ids:
        return f'objects of class {name!r}, which was not asked for, left out'
    if x2 - x1 < 1 or y2 - y1 < 1:
        return 'boxes less than a pixel wide or high, left out'
    if x1 >= image.width or y1 >= image.height or x2 <= 0 or y2 <= 0:
        return 'boxes outside the image, left out'
    return ''


def _doubt(box: Sequence[float], image: VOCImage, first_pixel: int) -> str:
    """What looks wrong with a box that is kept, or nothing."""
    x1, y1, x2, y2 = box
    if min(x1, y1) < 0:
        hint = '; do the files count from 0 (--first-pixel 0)?'
        return 'boxes that start outside the image, kept' + hint * first_pixel
    if x2 > image.width or y2 > image.height:
        return 'boxes that end outside the image, kept'
    return ''


def _check(
    splits: Sequence[str], classes: Sequence[str] | None, first_pixel: int
) -> None:
    for name, values in (('splits', splits), ('classes', classes)):
        if values is not None and (
            not values or not all(values) or len({*values}) < len(values)
        ):
            raise UsageError(
                f'{name} must be different names, at least one, got '
                f'{list(values)}'
            )
    paths = [split for split in splits if Path(split).name != split]
    if paths:
        raise UsageError(
            'splits must be names of lists, without a folder, got '
            f'{listing(paths)}'
        )
    if first_pixel not in (0, 1):
        raise UsageError(f'first_pixel must be 0 or 1, got {first_pixel}')
