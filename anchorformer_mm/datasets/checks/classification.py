"""Findings about labels of whole images."""

import os.path
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset

from anchorformer_mm.datasets.checks.classes import (
    head_sizes,
    name_findings,
)
from anchorformer_mm.datasets.checks.findings import Finding, found, shown
from anchorformer_mm.datasets.checks.images import Contents, ImageRecord
from anchorformer_mm.datasets.checks.passed_over import (
    files_below,
    passed_over,
)
from anchorformer_mm.utils.listing import listing


def read_labels(
    dataset: BaseDataset, split: str, cfg: ConfigDict
) -> tuple[Contents, Sequence[str] | None]:
    """Read what a ``CustomDataset`` of mmpretrain lists, and check it.

    Args:
        dataset: Built, but not initialised.
        split: ``'train'``, ``'val'`` or ``'test'``.
        cfg: The whole config, whose model says how many classes there are
            where the data set does not.

    Returns:
        tuple[Contents, Sequence[str] | None]: The images and findings, and
        the names of the classes, if there are any.
    """
    classes = dataset.metainfo.get('classes')
    root = dataset.img_prefix
    if dataset.ann_file:
        sizes = [len(classes)] if classes else head_sizes(cfg).values()
        return _read_list(dataset, split, min(sizes, default=None)), classes
    if not os.path.isdir(root):
        finding = found('set-empty', root, 'is no folder')
        return Contents(findings=[finding]), classes
    names = files_below(root)
    taken = [name for name in names if dataset.is_valid_file(name)]
    others = [name for name in names if not dataset.is_valid_file(name)]
    if not dataset.with_label:
        contents = _contents(dataset, root, taken)
        contents.findings += passed_over(root, others)
        return contents, None
    folders = sorted(e.name for e in os.scandir(root) if e.is_dir())
    images = {folder: [] for folder in folders}
    for name in taken:
        folder, _, rest = name.partition(os.sep)
        # What is in none of the folders has no label.
        (images[folder] if rest else others).append(name)
    contents = _contents(dataset, root, sum(images.values(), []))
    contents.findings += _folder_findings(dataset, root, images, classes)
    contents.findings += passed_over(root, others)
    return contents, classes or folders


def _contents(
    dataset: BaseDataset, root: str, names: Sequence[str]
) -> Contents:
    """Images by their names below a folder."""
    contents = Contents(
        [ImageRecord(os.path.join(root, n)) for n in sorted(names)]
    )
    if not names:
        contents.findings.append(found('set-empty', root, _no_image(dataset)))
    return contents


def _no_image(dataset: BaseDataset) -> str:
    return f'holds no image ({" ".join(sorted(dataset.extensions))})'


def _folder_findings(
    dataset: BaseDataset,
    root: str,
    images: Mapping[str, Sequence[str]],
    classes: Sequence[str] | None,
) -> Iterator[Finding]:
    """Check the folders of the classes, in the order of their labels."""
    for folder, names in images.items():
        if not names:
            path = os.path.join(root, folder)
            yield found('folder-empty', path, _no_image(dataset))
    folders = list(images)
    if classes is None:
        return
    if len(folders) != len(classes):
        yield found(
            'folder-classes',
            root,
            f'has {len(folders)} folders for {len(classes)} classes',
        )
    elif {*folders} == {*classes} and list(classes) != folders:
        yield found(
            'class-order',
            root,
            f'has the folders {listing(folders)}, numbered in this order, '
            f'but metainfo has {listing(classes)}',
        )


def _read_list(
    dataset: BaseDataset, split: str, num_classes: int | None
) -> Contents:
    """Read a list of images, with their labels if it has any."""
    file = dataset.ann_file
    contents = Contents()
    tell = contents.findings.append
    try:
        lines = Path(file).read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError:
        tell(found('annotation-file', file, 'is not text in UTF-8'))
        return contents
    if not lines:
        tell(found('set-empty', file, 'lists no image'))
    labels = {}
    for number, line in enumerate(lines, 1):
        name, label = line, None
        if dataset.with_label:
            name, _, word = line.strip().rpartition(' ')
            label = _whole(word)
            if not name or label is None:
                tell(
                    found(
                        'label-invalid',
                        file,
                        f'line {number} is {shown(line)}',
                    )
                )
                continue
        name = os.path.normpath(name)
        if label is not None and not _in_range(label, num_classes):
            tell(
                found(
                    'label-range',
                    file,
                    f'line {number} gives {name} the label {label}, but there '
                    f'are {num_classes} classes',
                )
            )
        if name in labels:
            is_same = labels[name] == label
            tell(
                found(
                    'image-twice' if is_same else 'label-conflict',
                    file,
                    f'line {number} lists {name} again'
                    + ('' if is_same else f', as {label} not {labels[name]}'),
                )
            )
        labels.setdefault(name, label)
    root = dataset.img_prefix
    contents.images = [ImageRecord(os.path.join(root, n)) for n in labels]
    contents.findings += _unlabelled(dataset, split, labels)
    return contents


def _whole(word: str) -> int | None:
    try:
        return int(word)
    except ValueError:
        return None


def _in_range(label: int, num_classes: int | None) -> bool:
    return label >= 0 and (num_classes is None or label < num_classes)


def _unlabelled(
    dataset: BaseDataset, split: str, labels: dict[str, int | None]
) -> Iterator[Finding]:
    """Tell of classes that no image has."""
    classes = dataset.metainfo.get('classes')
    if classes is None or not labels or not dataset.with_label:
        return
    counts = Counter(labels.values())
    by_name = {name: counts[index] for index, name in enumerate(classes)}
    yield from name_findings(
        classes, by_name, dataset.ann_file, is_training=split == 'train'
    )
