"""Findings about label maps, one each file.

What is looked for is what :mod:`anchorformer_mm.datasets.label_maps` refuses
before a run, which tells the first few files of each kind.
"""

import warnings
from collections.abc import Iterator

from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset

from anchorformer_mm.datasets.checks.findings import (
    ERROR,
    WARNING,
    Finding,
    found,
)
from anchorformer_mm.datasets.label_files import first_few, read_files
from anchorformer_mm.datasets.label_maps import (
    class_errors,
    ignored_errors,
)
from anchorformer_mm.datasets.label_targets import split_targets


def map_findings(
    dataset: BaseDataset, cfg: ConfigDict, split: str
) -> Iterator[Finding]:
    """Read the label maps of a data set, and tell what is wrong with them.

    Args:
        dataset: Of mmseg, initialised and not empty.
        cfg: The whole config.
        split: ``'train'``, ``'val'`` or ``'test'``.
    """
    targets = split_targets(cfg, split)
    place = dataset.ann_file or dataset.data_prefix.get('img_path')
    for message in class_errors(dataset, targets, split):
        text = message.removeprefix(f'{split}: ')
        yield found('classes-head', place, f': {text}')
    readings = read_files(dataset)
    for index, reading in enumerate(readings):
        if reading.problem:
            # Images are read, and told of, by themselves.
            if reading.path != dataset.get_data_info(index)['img_path']:
                text = f'{reading.detail}: {reading.problem}'
                yield found('label-map', reading.path, text)
            continue
        for target in targets:
            unknown = target.unknown(reading.ids or ())
            if unknown:
                yield found(
                    'label-ids',
                    reading.path,
                    f'has the ids {first_few(unknown)}, which {target} has '
                    'no class for',
                )
    maps = [reading for reading in readings if reading.ids is not None]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        errors = list(ignored_errors(dataset, maps, targets, split))
    texts = [(text, ERROR) for text in errors]
    texts += [(str(item.message), WARNING) for item in caught]
    for text, level in texts:
        text = text.removeprefix(f'{split}: ')
        yield found('label-ignored', place, f': {text}', level)
