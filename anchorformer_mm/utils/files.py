"""Files: written whole or not at all, and those that a config names."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anchorformer_mm.utils.errors import UsageError

# Where the data of our configs comes from, by its folder.
LAYOUTS = {
    'ade': 'http://data.csail.mit.edu/places/ADEchallenge/'
    'ADEChallengeData2016.zip, unpacked in data/ade',
    'bccd': 'git clone https://github.com/Shenggan/BCCD_Dataset '
    'data/BCCD_Dataset && '
    'python tools/dataset_converters/to_coco.py data/BCCD_Dataset/BCCD '
    '--out data/bccd --classes RBC WBC Platelets --first-pixel 0 '
    '--image-root data/BCCD_Dataset/BCCD/JPEGImages && '
    'cp -r data/BCCD_Dataset/BCCD/JPEGImages data/bccd/images',
    'coco': 'COCO 2017 from https://cocodataset.org',
    'custom': 'python tools/dataset_converters/to_coco.py SOURCE --out '
    'data/custom makes COCO files of boxes; or set data_root in the config, '
    'or after --cfg-options',
    'digits': 'python tools/dataset_converters/make_digits.py '
    '--out data/digits',
}
# What mmengine's `load` takes a file for by the end of its name, and reads in
# a way that runs code: its YAML loader makes any object of Python too.
UNSAFE_FORMATS = ('pkl', 'pickle', 'yml', 'yaml')
# Results that evaluators write are no file to read.
_WRITTEN = ('out_file_path', 'proposals_file')


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file through a temporary name beside it.

    Args:
        path: File to make or replace; its folder is made if need be.

    Yields:
        Path: Where to write, with the same suffix; renamed at the end.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def config_dicts(
    node: Any, name: str, scope: str | None = None
) -> Iterator[tuple[str, Mapping, str | None]]:
    """Every dictionary of a part of a config, with its name and scope."""
    items: Any = ()
    if isinstance(node, Mapping):
        scope = node.get('_scope_', scope)
        yield name, node, scope
        items = node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    for key, value in items:
        yield from config_dicts(value, f'{name}.{key}', scope)


def config_leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every value below a part of a config, with its name as of an option."""
    is_dict = isinstance(node, Mapping)
    if not is_dict and not isinstance(node, (list, tuple)):
        yield name, node
        return
    for key, value in node.items() if is_dict else enumerate(node):
        yield from config_leaves(value, f'{name}.{key}')


def split_datasets(cfg: Mapping, split: str) -> list:
    """Configs of the data sets of a split, without what wraps them.

    Args:
        cfg: A whole config.
        split: ``'train'``, ``'val'`` or ``'test'``; it may be absent.
    """

    def innermost(node: Any) -> Iterator[Any]:
        if isinstance(node, (list, tuple)):
            for item in node:
                yield from innermost(item)
        elif 'dataset' in node or 'datasets' in node:
            yield from innermost(node.get('dataset') or node['datasets'])
        else:
            yield node

    loader = cfg.get(f'{split}_dataloader')
    return list(innermost(loader['dataset'])) if loader else []


def dataset_paths(dataset: Mapping) -> list[Path]:
    """Annotation file and image folders of a data set, without remote ones.

    Args:
        dataset: Config of a data set with ``data_root``, ``ann_file`` and
            ``data_prefix`` as every OpenMMLab library has them.
    """
    root = str(dataset.get('data_root') or '')
    prefix = dataset.get('data_prefix') or {}
    names = [dataset.get('ann_file')]
    names += list(prefix.values()) if isinstance(prefix, dict) else [prefix]
    names = [str(name) for name in names if name] or ['']
    paths = [os.path.join(root, name) for name in names]
    return [Path(path) for path in paths if path and '://' not in path]


def require_datasets(cfg: Mapping, splits: Sequence[str]) -> None:
    """Check the data of a config before anything is built.

    Args:
        cfg: A whole config.
        splits: Of ``'train'``, ``'val'`` and ``'test'``, what will run.

    Raises:
        UsageError: Something is missing, and where to get it; or
            is a pickle (:func:`require_no_pickles`).
    """
    require_no_pickles(cfg, splits)
    datasets = [d for split in splits for d in split_datasets(cfg, split)]
    paths = list(dict.fromkeys(p for d in datasets for p in dataset_paths(d)))
    if all(path.exists() for path in paths):
        return
    width = max(len(str(path)) for path in paths)
    tree = '\n'.join(
        f'  {str(path):<{width}}  {"ok" if path.exists() else "missing"}'
        for path in paths
    )
    hints = [
        hint
        for name, hint in LAYOUTS.items()
        if any(name in path.parts and not path.exists() for path in paths)
    ]
    if any('ImageSets' in path.parts and not path.exists() for path in paths):
        hints.append(
            'lists of images, one name a line, in ImageSets/Main, or '
            'tools/dataset_converters/to_coco.py'
        )
    raise UsageError(
        'the data set of this config is not complete. Expected, relative to '
        f'{Path.cwd()}:\n{tree}'
        + (f'\nGet it: {"; ".join(hints)}' if hints else '')
        + '\nAnother place: a link to it under data/, or --cfg-options '
        f'{splits[0]}_dataloader.dataset.data_root=... and the like'
    )


def require_no_pickles(cfg: Mapping, splits: Sequence[str]) -> None:
    """Check that a model, data sets and evaluators read no pickle and no YAML.

    Reading these runs what is in them, and mmengine reads them wherever a
    name ends like this.

    Args:
        cfg: A whole config.
        splits: Of ``'train'``, ``'val'`` and ``'test'``, what will run.

    Raises:
        UsageError: A file name says so; the message has its place.
    """
    parts = ['model']
    for split in splits:
        parts += [f'{split}_dataloader', f'{split}_evaluator']
    found = [
        f'{name}={os.fspath(value)!r}'
        for part in parts
        for name, value in config_leaves(cfg.get(part), part)
        if isinstance(value, (str, os.PathLike))
        and not name.endswith(_WRITTEN)
        # As mmengine splits them: a file may be called 'pkl' and no more.
        and os.fspath(value).rpartition('.')[2] in UNSAFE_FORMATS
    ]
    if found:
        raise UsageError(
            'pickles and YAML run code when mmengine reads them, and are not '
            f'read here: {", ".join(found)}. If you trust the file, convert '
            'it to JSON: mmengine.dump(mmengine.load("a.pkl"), "a.json")'
        )
