"""The check of all data sets that a config names."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from mmengine.config import ConfigDict

from anchorformer_mm.datasets.checks.contents import Opened, open_dataset
from anchorformer_mm.datasets.checks.evaluators import evaluator_findings
from anchorformer_mm.datasets.checks.findings import ERROR, Finding, found
from anchorformer_mm.datasets.checks.images import (
    ImageRecord,
    check_images,
    even_sample,
)
from anchorformer_mm.utils.dataset_paths import split_datasets
from anchorformer_mm.utils.errors import UsageError

# How many errors the message of a refusal has.
FEW = 10


@dataclass
class Report:
    """What was checked, and what was found.

    Args:
        findings: In the order of the splits.
        listed: Images that each split lists.
        read: How many of them were looked at.
    """

    findings: list[Finding] = field(default_factory=list)
    listed: dict[str, int] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)


def check_datasets(
    cfg: ConfigDict,
    splits: Sequence[str],
    *,
    sample: int | None = None,
    workers: int | None = None,
    fast: bool = False,
    with_maps: bool = True,
) -> Report:
    """Check the data of a detector, a segmentor or a classifier.

    Annotations are always read whole.

    Args:
        cfg: A whole config. Its data must be there.
        splits: Of ``'train'``, ``'val'`` and ``'test'``. Where val and test
            are the same data, it is read once.
        sample: How many images (and label maps) of each data set to read,
            evenly spread; None for all.
        workers: Processes that read images; None for one a core.
        fast: Read headers of images only.
        with_maps: Whether to read label maps.

    Raises:
        UsageError: A data set cannot be built.
    """
    report = Report()
    training = set()
    for names, dataset in _once(cfg, splits):
        split, title = names[0], ' and '.join(names)
        opened = open_dataset(cfg, dataset, split)
        images = opened.contents.images
        chosen = [images[i] for i in even_sample(len(images), sample)]
        findings = opened.contents.findings
        findings += check_images(
            chosen,
            opened.loader,
            has_places=opened.has_places,
            title=title,
            workers=workers,
            fast=fast,
        )
        if opened.coco_file is not None:
            for name in names:
                findings += evaluator_findings(cfg, name, opened.coco_file)
        if with_maps:
            findings += _map_findings(opened, cfg, split, sample)
        if split == 'train':
            training.update(record.path for record in images)
        else:
            findings += _leaks(images, training)
        report.findings += [replace(f, split=title) for f in findings]
        report.listed[title] = report.listed.get(title, 0) + len(images)
        report.read[title] = report.read.get(title, 0) + len(chosen)
    return report


def require_sound_data(
    cfg: ConfigDict, splits: Sequence[str], sample: int = 200
) -> None:
    """Refuse to run on data with errors: the look before a run.

    Reads all annotations and a sample of the images; label maps have a check
    of their own.

    Args:
        cfg: A whole config. Its data must be there.
        splits: Of ``'train'``, ``'val'`` and ``'test'``, what will run.
        sample: How many images of each data set to read.

    Raises:
        UsageError: There are errors; the one message has the first of them.
    """
    report = check_datasets(
        cfg, splits, sample=sample, workers=1, with_maps=False
    )
    errors = [str(f) for f in report.findings if f.level == ERROR]
    if not errors:
        return
    lines = ['the data has errors:', *errors[:FEW]]
    if len(errors) > FEW:
        lines.append(f'and {len(errors) - FEW} more')
    raise UsageError(
        '\n'.join(lines)
        + '\nAll of them: python tools/misc/check_dataset.py CONFIG. '
        'To run all the same: --skip-data-check'
    )


def _once(
    cfg: ConfigDict, splits: Iterable[str]
) -> list[tuple[list[str], ConfigDict]]:
    """Data sets with the splits that have them, same ones together."""
    merged = []
    for split in splits:
        for dataset in split_datasets(cfg, split):
            for names, other in merged:
                # What is learnt has checks that others do without.
                if 'train' not in (split, *names) and _same(dataset, other):
                    names.append(split)
                    break
            else:
                merged.append(([split], dataset))
    return merged


def _same(one: ConfigDict, other: ConfigDict) -> bool:
    """Whether two data sets differ in their transforms at most."""
    return {**one, 'pipeline': None} == {**other, 'pipeline': None}


def _map_findings(
    opened: Opened, cfg: ConfigDict, split: str, sample: int | None
) -> list[Finding]:
    dataset = opened.segmentation
    if dataset is None or not opened.contents.images:
        return []
    # Needs mmseg, which other configs do without.
    from anchorformer_mm.datasets.checks.segmentation import map_findings

    return list(map_findings(dataset, cfg, split, sample))


def _leaks(
    images: Iterable[ImageRecord], training: Collection[str]
) -> list[Finding]:
    return [
        found('image-in-training', record.path, 'is also in training')
        for record in images
        if record.path in training
    ]
