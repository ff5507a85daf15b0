"""What is wrong with single entries of a COCO annotation file, in words."""

import os
from collections.abc import Sequence

from anchorformer_mm.datasets.checks.boxes import TOLERANCE, are_finite
from anchorformer_mm.datasets.checks.findings import ERROR, WARNING, shown
from anchorformer_mm.utils.listing import listing


def entry_flaw(entry: object, keys: Sequence[str]) -> str:
    """What an entry lacks, or nothing; ids must be numbers or strings."""
    if not isinstance(entry, dict):
        return 'is no object of JSON'
    lacking = [key for key in keys if key not in entry]
    if lacking:
        return f'has no {listing(lacking)}'
    for key in keys:
        is_id = key == 'id' or key.endswith('_id')
        if is_id and not _is_id(entry[key]):
            return f'has the {key} {shown(entry[key])}'
    return ''


def _is_id(value: object) -> bool:
    # One that is not equal to itself is NaN.
    return isinstance(value, (int, float, str)) and value == value


def name_flaw(entry: dict, key: str) -> str:
    """What is wrong with a name that an entry has, or nothing."""
    name = entry[key]
    if isinstance(name, str) and name:
        return ''
    return f'has the {key} {shown(name)}'


def image_flaw(entry: dict) -> str:
    """What is wrong with the file and the size of an image, or nothing."""
    if flaw := name_flaw(entry, 'file_name'):
        return flaw
    if not _is_file_name(entry['file_name']):
        return f'has the file_name {shown(entry["file_name"])}'
    size = entry['width'], entry['height']
    if are_finite(size) and min(size) > 0:
        return ''
    return f'has the width {shown(size[0])} and the height {shown(size[1])}'


def _is_file_name(name: str) -> bool:
    """Whether a file can be called that on this system."""
    try:
        return b'\0' not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def area_doubt(entry: dict) -> tuple[str, str] | None:
    """What is wrong with the area of an annotation whose box is sound.

    Returns:
        tuple[str, str] | None: How grave it is, and the text.
    """
    area, (width, height) = entry['area'], entry['bbox'][2:]
    if not are_finite([area]) or area <= 0:
        text = f'has the area {shown(area)}, so that it is passed over'
        return ERROR, text
    # It may count the pixels of both borders.
    if area > (width + TOLERANCE) * (height + TOLERANCE):
        of_box = f'{float(width) * float(height):g}'
        text = f'has the area {float(area):g}, and a box of {of_box} px^2'
        return WARNING, text
    return None
