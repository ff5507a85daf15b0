"""Findings about a COCO annotation file.

The file is read as it is: mmdet's data set passes over what it cannot use,
and stops at the first id that is there twice.
"""

import json
import os.path
from collections import Counter
from collections.abc import Iterator, Sequence

from mmengine.dataset import BaseDataset

from anchorformer_mm.datasets.checks.boxes import box_problem
from anchorformer_mm.datasets.checks.classes import name_findings
from anchorformer_mm.datasets.checks.coco_entries import (
    area_doubt,
    entry_flaw,
    image_flaw,
    name_flaw,
)
from anchorformer_mm.datasets.checks.findings import (
    ERROR,
    WARNING,
    Finding,
    found,
    shown,
)
from anchorformer_mm.datasets.checks.images import Contents, ImageRecord
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.listing import listing

_IMAGE_KEYS = ('id', 'file_name', 'width', 'height')
_ANNOTATION_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')


def read_coco(dataset: BaseDataset, split: str) -> Contents:
    """Read what a ``CocoDataset`` lists, and check it.

    Args:
        dataset: Built, but not initialised.
        split: ``'train'``, where mmdet leaves out what it cannot learn from,
            or one of ``'val'`` and ``'test'``, where the metric counts it.

    Raises:
        UsageError: The data set has no folder of images, as mmdet names it.
    """
    if 'img' not in dataset.data_prefix:
        raise UsageError(
            "data_prefix of a CocoDataset must be dict(img='folder'), got "
            f'{dataset.data_prefix}'
        )
    file = dataset.ann_file
    try:
        # As pycocotools does where texts are in UTF-8; no byte order mark.
        with open(file, encoding='utf-8') as stream:
            content = json.load(stream)
    except UnicodeDecodeError:
        return _nothing(file, 'is not text in UTF-8')
    except ValueError as error:
        return _nothing(file, f'is not JSON ({error})')
    except RecursionError:
        return _nothing(file, 'is JSON that is nested too deep')
    required = ['images', 'categories']
    # The lists of test sets have no annotations.
    required += [] if split == 'test' else ['annotations']
    lists = content if isinstance(content, dict) else {}
    lacking = [k for k in required if not isinstance(lists.get(k), list)]
    if lacking:
        return _nothing(file, f'has no list of {listing(lacking)}')
    classes = dataset.metainfo.get('classes') or ()
    checked = _File(file, content, split)
    findings = list(checked.image_findings())
    findings += checked.category_findings(classes)
    if 'annotations' in content:
        findings += checked.annotation_findings()
        findings += name_findings(
            classes, checked.counts(), file, is_training=split == 'train'
        )
    images = [
        ImageRecord(os.path.join(dataset.data_prefix['img'], name), size)
        for name, size in checked.sizes.items()
    ]
    return Contents(images, findings)


def _nothing(file: str, text: str) -> Contents:
    return Contents(findings=[found('annotation-file', file, text)])


class _File:
    """The content of one file.

    Args:
        path: What to call it.
        content: With the lists that the split must have.
        split: Of ``'train'``, ``'val'`` and ``'test'``.
    """

    def __init__(self, path: str, content: dict, split: str) -> None:
        self.path = path
        self.split = split
        self.entries = content['images']
        self.annotations = content.get('annotations') or []
        self.categories = content['categories']
        # Images that are sound, by id and by file name.
        self.images: dict[int | str, dict] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.category_counts: Counter = Counter()
        # Images, categories and boxes of the annotations so far.
        self.boxes: set[tuple] = set()

    def image_findings(self) -> Iterator[Finding]:
        """Check the list of images, and take the sound ones from it."""
        if not self.entries:
            yield found('set-empty', self.path, 'lists no image')
        for index, entry in enumerate(self.entries):
            flaw = entry_flaw(entry, _IMAGE_KEYS) or image_flaw(entry)
            if flaw:
                yield found(
                    'image-entry', self.path, f': images[{index}] {flaw}'
                )
                continue
            name = os.path.normpath(entry['file_name'])
            if entry['id'] in self.images:
                other = self.images[entry['id']]['file_name']
                yield found(
                    'image-id-twice',
                    self.path,
                    f'has the image id {shown(entry["id"])} for {other} and '
                    f'{name}, of which the last is used',
                )
            if name in self.sizes:
                yield found(
                    'image-twice', self.path, f'lists {name} more than once'
                )
            self.images[entry['id']] = entry
            self.sizes[name] = (entry['width'], entry['height'])

    def category_findings(self, classes: Sequence[str]) -> Iterator[Finding]:
        """Compare the categories with the names of ``metainfo``."""
        for index, entry in enumerate(self.categories):
            flaw = entry_flaw(entry, ('id', 'name')) or name_flaw(
                entry, 'name'
            )
            if flaw:
                yield found(
                    'annotation-file',
                    self.path,
                    f': categories[{index}] {flaw}',
                )
                self.categories = []
                return
        for key in ('id', 'name'):
            counts = Counter(c[key] for c in self.categories)
            twice = [shown(value) for value, n in counts.items() if n > 1]
            if twice:
                yield found(
                    'category-twice',
                    self.path,
                    f'has several categories of the {key} {listing(twice)}',
                )
        names = [c['name'] for c in self.categories]
        unknown = [repr(name) for name in classes if name not in names]
        if unknown:
            there = listing(map(repr, names)) if names else 'none'
            yield found(
                'class-unknown',
                self.path,
                f'has no category {listing(unknown)} of metainfo; it has '
                f'{there}',
            )
            return
        ours = [name for name in names if name in classes]
        if ours != list(classes) and len({*ours}) == len(ours):
            yield found(
                'class-order',
                self.path,
                f'has its categories in another order ({listing(ours)}) than '
                f'metainfo ({listing(classes)}); labels follow the file, '
                'names follow metainfo',
            )

    def annotation_findings(self) -> Iterator[Finding]:
        """Check the list of annotations, and count those of categories."""
        if not self.annotations and self.split != 'test':
            yield found('set-empty', self.path, 'lists no annotation')
        known = {category['id'] for category in self.categories}
        ids = set()
        for index, entry in enumerate(self.annotations):
            flaw = entry_flaw(entry, _ANNOTATION_KEYS)
            if flaw:
                yield found(
                    'annotation-entry',
                    self.path,
                    f': annotations[{index}] {flaw}',
                )
                continue
            if entry['id'] in ids:
                yield self._told(
                    'annotation-id-twice', entry, 'has an id in use'
                )
            ids.add(entry['id'])
            self.category_counts[entry['category_id']] += 1
            yield from self._entry_findings(entry, known)

    def counts(self) -> dict[str, int]:
        """How many annotations each category has."""
        return {
            category['name']: self.category_counts[category['id']]
            for category in self.categories
        }

    def _entry_findings(self, entry: dict, known: set) -> Iterator[Finding]:
        """What is wrong with one annotation that is complete."""
        if entry['id'] == 0:
            yield self._told(
                'annotation-id-zero',
                entry,
                'has the id 0, which pycocotools takes for no match: its '
                'object counts as missed',
                WARNING if self.split == 'train' else ERROR,
            )
        # There are none if their list is faulty, which is told.
        if known and entry['category_id'] not in known:
            yield self._told(
                'annotation-category',
                entry,
                f'is of the category {shown(entry["category_id"])}, which is '
                'not defined',
            )
        image = self.images.get(entry['image_id'])
        if image is None:
            yield self._told(
                'annotation-image',
                entry,
                f'is on the image {shown(entry["image_id"])}, which is not '
                'listed',
            )
        size = image and (image['width'], image['height'])
        problem = box_problem(entry['bbox'], size)
        if problem is not None:
            kind, text = problem
            passed_over = kind == 'box-without-area' and self.split == 'train'
            yield self._told(
                kind,
                entry,
                f'has the {text}',
                WARNING if passed_over else None,
            )
        elif (doubt := area_doubt(entry)) is not None:
            level, text = doubt
            yield self._told('annotation-area', entry, text, level)
        if (not problem or problem[0] != 'box-invalid') and self._had(entry):
            text = f'has the box {shown(entry["bbox"])} of another one'
            yield self._told('box-twice', entry, text)
        if self.split != 'train' and entry.get('iscrowd') not in (0, 1):
            has = 'no iscrowd'
            if 'iscrowd' in entry:
                has = f'the iscrowd {shown(entry["iscrowd"])}'
            yield self._told(
                'annotation-crowd',
                entry,
                f'has {has}, which the metric stops at',
            )

    def _had(self, entry: dict) -> bool:
        """Whether a box, of four numbers, was there before."""
        box = entry['image_id'], entry['category_id'], *entry['bbox']
        count = len(self.boxes)
        self.boxes.add(box)
        return len(self.boxes) == count

    def _told(
        self, kind: str, entry: dict, text: str, level: str | None = None
    ) -> Finding:
        image = self.images.get(entry['image_id'])
        where = f' ({image["file_name"]})' if image else ''
        return found(
            kind,
            self.path,
            f': annotation {shown(entry["id"])}{where} {text}',
            level,
        )
