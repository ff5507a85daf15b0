"""Findings about label maps, one each file.

What is looked for is what :mod:`anchorformer_mm.datasets.label_maps` refuses
before a run, which tells the first few files of each kind.
"""

import warnings
from collections.abc import Iterator

from mmcv.transforms import LoadAnnotations
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset

from anchorformer_mm.datasets.checks.findings import (
    ERROR,
    WARNING,
    Finding,
    found,
)
from anchorformer_mm.datasets.checks.image_files import (
    ImageFacts,
    Loader,
    place_problem,
    read_image,
)
from anchorformer_mm.datasets.checks.images import even_sample
from anchorformer_mm.datasets.label_files import first_few, read_files
from anchorformer_mm.datasets.label_maps import (
    class_errors,
    ignored_errors,
)
from anchorformer_mm.datasets.label_targets import split_targets


def map_findings(
    dataset: BaseDataset, cfg: ConfigDict, split: str, sample: int | None
) -> Iterator[Finding]:
    """Read the label maps of a data set, and tell what is wrong with them.

    Args:
        dataset: Of mmseg, initialised and not empty; it will have the images
            that were looked at, and no other.
        cfg: The whole config.
        split: ``'train'``, ``'val'`` or ``'test'``.
        sample: How many maps to read, evenly spread; None for all. That they
            are there is looked at for all.
    """
    targets = split_targets(cfg, split)
    place = dataset.ann_file or dataset.data_prefix.get('img_path')
    for message in class_errors(dataset, targets, split):
        text = message.removeprefix(f'{split}: ')
        yield found('classes-head', place, f': {text}')
    problems = _file_problems(dataset)
    sound = [i for i, (_, text) in enumerate(problems) if text is None]
    yield from (
        found('label-map', path, text) for path, text in problems if text
    )
    chosen = [sound[i] for i in even_sample(len(sound), sample)]
    if not chosen:
        return
    dataset.get_subset_(chosen)
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


def _file_problems(dataset: BaseDataset) -> list[tuple[str, str | None]]:
    """Of each image, its label map, and why the two are not to be read.

    Returns:
        list[tuple[str, str | None]]: Path, and text: None where both can be
        read, ``''`` where the image cannot, which is told elsewhere.
    """
    load = next(
        (
            transform
            for transform in dataset.pipeline.transforms
            if isinstance(transform, LoadAnnotations)
        ),
        None,
    )
    problems = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        path, facts = info.get('seg_map_path', ''), None
        if load is not None and path:
            facts = _header(path, load.imdecode_backend)
        text = facts.detail if facts and facts.problem else None
        if text is None and place_problem(info['img_path']):
            text = ''
        problems.append((path, text))
    return problems


def _header(path: str, backend: str) -> ImageFacts | None:
    """What a file is, before the loader of label maps opens it."""
    if backend == 'tifffile':
        return place_problem(path)
    return read_image(path, Loader('unchanged', backend), decode=False)
