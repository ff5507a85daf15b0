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
    'python tools/dataset_converters/voc_to_coco.py data/BCCD_Dataset/BCCD '
    '--out data/bccd --classes RBC WBC Platelets --first-pixel 0 && '
    'cp -r data/BCCD_Dataset/BCCD/JPEGImages data/bccd/images',
    'coco': 'COCO 2017 from https://cocodataset.org',
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
        Path: Where to write, with the same suffix. It is renamed to ``path``
        at the end, and removed if the body raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def config_leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every value below a part of a config, with its name as of an option."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from config_leaves(value, f'{name}.{key}')
    elif isinstance(node, (list, tuple)):
        for i, item in enumerate(node):
            yield from config_leaves(item, f'{name}.{i}')
    else:
        yield name, node


def split_datasets(cfg: Mapping, split: str) -> list:
    """Data sets that a split draws from, without what wraps them.

    Args:
        cfg: A whole config.
        split: ``'train'``, ``'val'`` or ``'test'``.

    Returns:
        list[ConfigDict]: Their configs, none if the config lacks the split.
    """
    loader = cfg.get(f'{split}_dataloader')
    return list(_innermost(loader['dataset'])) if loader else []


def _innermost(cfg: Any) -> Iterator[Any]:
    if isinstance(cfg, (list, tuple)):
        for item in cfg:
            yield from _innermost(item)
    elif 'dataset' in cfg:
        yield from _innermost(cfg['dataset'])
    elif 'datasets' in cfg:
        yield from _innermost(cfg['datasets'])
    else:
        yield cfg


def dataset_paths(dataset: Mapping) -> list[Path]:
    """Files and folders that one data set names, relative ones joined.

    Args:
        dataset: Config of a data set with ``data_root``, ``ann_file`` and
            ``data_prefix`` as every OpenMMLab library has them.

    Returns:
        list[Path]: Annotation file, then image folders; remote paths
        (``s3://`` and the like) are left out.
    """
    root = str(dataset.get('data_root') or '')
    prefix = dataset.get('data_prefix') or {}
    names = [dataset.get('ann_file')]
    names += list(prefix.values()) if isinstance(prefix, dict) else [prefix]
    names = [str(name) for name in names if name]
    if not names and root:
        names = ['']
    joined = [n if Path(n).is_absolute() else f'{root}/{n}' for n in names]
    if '://' in root or not root:
        joined = [n for n in names if Path(n).is_absolute()]
    return [Path(name) for name in joined if '://' not in name]


def require_datasets(cfg: Mapping, splits: Sequence[str]) -> None:
    """Check the data of a config before anything is built.

    Args:
        cfg: A whole config.
        splits: Of ``'train'``, ``'val'`` and ``'test'``, what will run.

    Raises:
        UsageError: Something is missing; the one message names the expected
            tree, what of it is missing and where to get it. Or something is
            a pickle (:func:`require_no_pickles`).
    """
    require_no_pickles(cfg, splits)
    paths = [
        path
        for split in splits
        for dataset in split_datasets(cfg, split)
        for path in dataset_paths(dataset)
    ]
    paths = list(dict.fromkeys(paths))
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
        if any(name in path.parts for path in paths)
    ]
    raise UsageError(
        'the data set of this config is not complete. Expected, relative to '
        f'{Path.cwd()}:\n{tree}'
        + (f'\nGet it: {"; ".join(hints)}' if hints else '')
        + '\nAnother place: --cfg-options '
        'train_dataloader.dataset.data_root=... '
        'val_dataloader.dataset.data_root=..., and ann_file of the '
        'evaluators, or a link to it under data/'
    )


def require_no_pickles(cfg: Mapping, splits: Sequence[str]) -> None:
    """Check that a model, data sets and evaluators read no pickle and no YAML.

    Reading these runs what is in them, and mmengine reads them wherever a
    name ends like this: annotations and proposals of data sets, the weights
    of classes of mmseg's losses.

    Args:
        cfg: A whole config.
        splits: Of ``'train'``, ``'val'`` and ``'test'``, what will run.

    Raises:
        UsageError: A file name says so; the message names where in the config
            it stands.
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
