"""What can be wrong with a data set, and how it is told.

An error stops a run or makes its figures wrong; a warning costs data, quality
or time.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from reprlib import Repr
from typing import NamedTuple

from anchorformer_mm.utils.printable import printable

ERROR, WARNING = 'error', 'warning'

# Files of others may hold values of any length and depth.
_REPR = Repr()
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 8
_REPR.maxstring = _REPR.maxother = 200


class Kind(NamedTuple):
    """A kind of finding: how grave it is, and what mends it."""

    level: str
    remedy: str


_RENUMBER = 'number them anew from 1'
_REDRAW = 'correct or delete the box'

KINDS = {
    # Image files
    'image-missing': Kind(ERROR, 'put it there, or take it off the list'),
    'image-unreadable': Kind(ERROR, 'get it again, or take it off the list'),
    'image-truncated': Kind(ERROR, 'get it again, or take it off the list'),
    'image-one-pixel': Kind(ERROR, 'get the picture itself'),
    'image-huge': Kind(WARNING, 'store it smaller, or cut it into tiles'),
    'image-16-bit': Kind(WARNING, 'stretch it to 8 bits yourself'),
    'image-grey': Kind(WARNING, 'leave it, if grey ones come in use too'),
    'image-alpha': Kind(WARNING, 'paint it on a background of your choice'),
    'image-cmyk': Kind(WARNING, 'convert it to RGB by its colour profile'),
    'image-channels': Kind(ERROR, "load with color_type='color'"),
    'image-turned': Kind(
        WARNING, 'turn the pixels as annotated, and delete the EXIF tag'
    ),
    'image-turned-size': Kind(
        ERROR,
        "load with color_type='color_ignore_orientation', or delete the tag",
    ),
    'image-size': Kind(ERROR, 'correct the annotation or the image'),
    'image-passed-over': Kind(
        WARNING, 'rename or convert them as the others, if they are of use'
    ),
    'image-in-training': Kind(WARNING, 'take it out of one of the splits'),
    # Lists and entries of annotations
    'annotation-file': Kind(ERROR, 'correct or export it again'),
    'evaluator-file': Kind(ERROR, 'set ann_file of the evaluator'),
    'set-empty': Kind(ERROR, 'see ann_file and data_prefix of the config'),
    'set-unknown': Kind(WARNING, 'picture some of it (browse_dataset.py)'),
    'image-entry': Kind(ERROR, 'complete or delete the entry'),
    'image-twice': Kind(ERROR, 'merge the entries into one'),
    'image-id-twice': Kind(ERROR, _RENUMBER),
    'annotation-entry': Kind(ERROR, 'complete or delete the entry'),
    'annotation-id-twice': Kind(ERROR, _RENUMBER),
    'annotation-id-zero': Kind(ERROR, _RENUMBER),
    'annotation-image': Kind(ERROR, 'list the image, or delete the entry'),
    'annotation-category': Kind(ERROR, 'define it, or delete the entry'),
    'annotation-area': Kind(ERROR, "set 'area' in px^2"),
    'annotation-crowd': Kind(ERROR, "set 'iscrowd' to 0, or 1 for a group"),
    'box-invalid': Kind(ERROR, _REDRAW),
    'box-without-area': Kind(ERROR, _REDRAW),
    'box-tiny': Kind(WARNING, _REDRAW),
    'box-outside': Kind(ERROR, _REDRAW),
    'box-twice': Kind(WARNING, 'delete one of them'),
    'box-partly-outside': Kind(WARNING, 'cut the box at the border'),
    # Classes
    'category-twice': Kind(ERROR, 'merge the categories into one'),
    'category-unused': Kind(
        WARNING, 'name it in metainfo, if it is to be learnt'
    ),
    'class-unknown': Kind(ERROR, 'spell metainfo.classes as the data does'),
    'class-order': Kind(ERROR, 'order metainfo.classes as the data does'),
    'class-empty': Kind(WARNING, 'add examples, or leave the class out'),
    'classes-head': Kind(ERROR, 'set num_classes of the model'),
    # Label maps
    'label-map': Kind(ERROR, 'write one id of 8 bits for each pixel'),
    'label-map-alone': Kind(WARNING, 'put its image there, or delete it'),
    'label-ids': Kind(ERROR, 'correct the map, num_classes or ignore_index'),
    'label-ignored': Kind(ERROR, 'take them off the list'),
    # Labels of whole images
    'label-invalid': Kind(ERROR, "write 'path label', with a whole number"),
    'label-range': Kind(ERROR, 'count labels from 0; see metainfo.classes'),
    'label-conflict': Kind(ERROR, 'keep one of the labels'),
    'folder-empty': Kind(ERROR, 'put images there, or delete the folder'),
    'folder-classes': Kind(ERROR, 'make one folder a class'),
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        kind: One of :data:`KINDS`.
        file: Which file, or folder, it is about.
        text: What is wrong, as a sentence goes on after the file's name,
            or after a colon.
        level: ``'error'`` or ``'warning'``.
        split: Where the file is used.
    """

    kind: str
    file: str
    text: str
    level: str
    split: str = ''

    def __str__(self) -> str:
        where = f'{self.split}: ' if self.split else ''
        space = '' if self.text.startswith(':') else ' '
        line = (
            f'{self.level}: {where}{self.file}{space}{self.text}; '
            f'{KINDS[self.kind].remedy} [{self.kind}]'
        )
        # Names of files may hold anything.
        return printable(' '.join(line.splitlines()))


def shown(value: object) -> str:
    """A value of an annotation, as ``repr`` has it, with an end to it."""
    return _REPR.repr(value)


def found(
    kind: str, file: object, text: str, level: str | None = None
) -> Finding:
    """Make a finding of a kind, at its own level unless told otherwise."""
    return Finding(kind, str(file), text, level or KINDS[kind].level)


def listed(findings: Sequence[Finding], limit: int = 0) -> Iterator[str]:
    """One line each finding, errors first, and of like ones the first.

    Args:
        findings: In any order; that of each kind is kept.
        limit: Lines for each kind of each split, 0 for all.
    """
    counts = Counter((f.split, f.kind) for f in findings)
    told = Counter()
    for level in (ERROR, WARNING):
        for finding in findings:
            key = finding.split, finding.kind
            if finding.level != level or (limit and told[key] >= limit):
                continue
            told[key] += 1
            yield str(finding)
    for (split, kind), count in counts.items():
        if more := count - told[split, kind]:
            yield f'and {more} more: {split} [{kind}]'


def summary(findings: Sequence[Finding]) -> Iterator[str]:
    """How many findings there are, then a line each level and kind."""
    levels = Counter(finding.level for finding in findings)
    yield f'{levels[ERROR]} errors, {levels[WARNING]} warnings'
    kinds = Counter((f.level, f.kind) for f in findings)
    for (level, kind), count in sorted(kinds.items()):
        yield f'{count:8}  {level:7}  {kind}'
