"""Whether the label maps of a config fit its segmentor.

They are found, and read, by the data sets and the pipelines of the config
themselves; only what comes out of that is looked at.
"""

import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence

from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope

from anchorformer_mm.datasets.label_files import (
    Reading,
    first_few,
    read_files,
)
from anchorformer_mm.datasets.label_targets import Target, split_targets
from anchorformer_mm.utils.dataset_paths import split_datasets
from anchorformer_mm.utils.errors import UsageError

# Of the maps of a training split, how many may hold nothing to learn: ADE20K
# is said to have 14 of them among 20,210.
MAX_IGNORED = 0.01
MANY_FILES = 1000


def check_label_maps(cfg: ConfigDict, splits: Sequence[str]) -> None:
    """Check the images and label maps of a config that mmseg is to run.

    mmseg itself ends in an index error, somewhere in the first epoch, on an
    id that the head has no class for, learns nothing from a map on which
    every pixel is ignored, and reads maps of 16 bits modulo 256.

    Of images only the headers are read; label maps are decoded.

    Args:
        cfg: A whole config.
        splits: Of ``'train'``, ``'val'`` and ``'test'``, what will run.

    Raises:
        UsageError: A split is empty; an image or a label map is missing, does
            not decode, or they differ in size; a label map has several
            channels or ids that do not fit into 8 bits, or ids that a head
            has no class for; more than one in a hundred of the label maps for
            training, or all for evaluation, hold nothing but the ignored id;
            or the classes of a data set are not as many as a head has. One
            message each kind names the first files.
    """
    errors = []
    for split in splits:
        targets = split_targets(cfg, split)
        for dataset in split_datasets(cfg, split):
            built = _build(dataset, cfg.get('default_scope'))
            errors += _errors(built, targets, split)
    if errors:
        raise UsageError(
            '\n'.join(['the data does not fit the model:', *errors])
            + '\nTo run all the same: --skip-data-check'
        )


def _build(dataset: ConfigDict, scope: str | None) -> BaseDataset:
    with DefaultScope.overwrite_default_scope(scope):
        built = DATASETS.build(ConfigDict(dataset, lazy_init=True))
    # mmengine cannot serialise a data set in which there is nothing.
    built.serialize_data = False
    built.full_init()
    return built


def _errors(
    dataset: BaseDataset, targets: Sequence[Target], split: str
) -> Iterator[str]:
    """What is wrong with one data set, one message each kind."""
    count = len(dataset)
    if count == 0:
        suffix = getattr(dataset, 'img_suffix', None)
        yield (
            f'{split}: no image in {dataset.data_prefix.get("img_path")} '
            f'(img_suffix={suffix!r}, ann_file={dataset.ann_file!r})'
        )
        return
    yield from class_errors(dataset, targets, split)
    if count >= MANY_FILES:
        print(
            f'checking the {count} label maps of the {split} split '
            '(--skip-data-check skips this)',
            file=sys.stderr,
            flush=True,
        )
    readings = read_files(dataset)
    for problem, named in _by_problem(readings).items():
        yield (
            f'{split}: {len(named)} of {count} {problem}: {first_few(named)}'
        )
    maps = [reading for reading in readings if reading.ids is not None]
    yield from _id_errors(dataset, maps, targets, split)
    yield from ignored_errors(dataset, maps, targets, split)


def _by_problem(readings: Sequence[Reading]) -> dict[str, list[str]]:
    groups = defaultdict(list)
    for reading in readings:
        if reading.problem:
            groups[reading.problem].append(f'{reading.path} {reading.detail}')
    return groups


def class_errors(
    dataset: BaseDataset, targets: Sequence[Target], split: str
) -> Iterator[str]:
    classes = dataset.metainfo.get('classes')
    if classes is None and split == 'train':
        # Only an evaluation asks for their names.
        return
    for target in targets:
        if len(classes or ()) != target.num_ids:
            yield (
                f'{split}: metainfo of {type(dataset).__name__} has '
                f'{len(classes or ())} classes, but {target} takes '
                f'{target.num_ids}'
            )


def _id_errors(
    dataset: BaseDataset,
    maps: Sequence[Reading],
    targets: Sequence[Target],
    split: str,
) -> Iterator[str]:
    for target in targets:
        unknown = {m.path: target.unknown(m.ids) for m in maps}
        named = [
            f'{path} ({first_few(ids)})'
            for path, ids in unknown.items()
            if ids
        ]
        if not named:
            continue
        reduced = getattr(dataset, 'reduce_zero_label', False)
        largest = max(id_ for ids in unknown.values() for id_ in ids)
        message = (
            f'{split}: {len(named)} of {len(maps)} label maps have ids that '
            f'{target} has no class for'
            f'{", after reduce_zero_label" if reduced else ""}: '
            f'{first_few(named)}. It takes ids from 0 to {target.num_ids - 1}'
        )
        if largest == target.num_ids and not reduced:
            message += (
                '; set reduce_zero_label=True for the data set if 0 is no '
                f'class of its own, else num_classes={largest + 1}'
            )
        yield message


def ignored_errors(
    dataset: BaseDataset,
    maps: Sequence[Reading],
    targets: Sequence[Target],
    split: str,
) -> Iterator[str]:
    """Tell of maps with nothing to learn from, or to compare with.

    A few for training are but warned of: their loss is zero.
    """
    ignored = {target.ignore_index for target in targets}
    named = [m.path for m in maps if ignored.issuperset(m.ids)]
    if not named or (split != 'train' and len(named) < len(maps)):
        return
    message = (
        f'{split}: {len(named)} of {len(maps)} label maps hold nothing but '
        f'the ignored id {" or ".join(map(str, ignored))}'
    )
    if getattr(dataset, 'reduce_zero_label', False):
        message += ', which reduce_zero_label makes of 0'
    message += (
        f': {first_few(named)}. To leave them out, list the others in an '
        'ann_file of the data set'
    )
    if split == 'train' and len(named) <= MAX_IGNORED * len(maps):
        warnings.warn(message, stacklevel=2)
    else:
        yield message
