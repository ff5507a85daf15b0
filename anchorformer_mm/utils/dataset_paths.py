"""Whether the files that a config's data sets name are there."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.config import ConfigDict

from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.pickled_data import require_no_pickles

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


def _datasets(cfg: ConfigDict | Sequence) -> Iterator[ConfigDict]:
    """The innermost data sets of a data set, wrapped or concatenated."""
    if isinstance(cfg, (list, tuple)):
        for item in cfg:
            yield from _datasets(item)
    elif 'dataset' in cfg:
        yield from _datasets(cfg['dataset'])
    elif 'datasets' in cfg:
        yield from _datasets(cfg['datasets'])
    else:
        yield cfg


def split_datasets(cfg: ConfigDict, split: str) -> list[ConfigDict]:
    """Data sets that a split draws from, without what wraps them.

    Args:
        cfg: A whole config.
        split: ``'train'``, ``'val'`` or ``'test'``.

    Returns:
        list[ConfigDict]: Their configs, none if the config lacks the split.
    """
    loader = cfg.get(f'{split}_dataloader')
    return list(_datasets(loader['dataset'])) if loader else []


def dataset_paths(dataset: ConfigDict) -> list[Path]:
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


def _tree(paths: Sequence[Path]) -> str:
    width = max(len(str(path)) for path in paths)
    return '\n'.join(
        f'  {str(path):<{width}}  {"ok" if path.exists() else "missing"}'
        for path in paths
    )


def require_datasets(cfg: ConfigDict, splits: Sequence[str]) -> None:
    """Check the data of a config before anything is built.

    Args:
        cfg: A whole config.
        splits: Of ``'train'``, ``'val'`` and ``'test'``, what will run.

    Raises:
        UsageError: Something is missing; the one message names the expected
            tree, what of it is missing and where to get it. Or something is
            a pickle (:func:`.require_no_pickles`).
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
    hints = [
        hint
        for name, hint in LAYOUTS.items()
        if any(name in path.parts for path in paths)
    ]
    message = (
        'the data set of this config is not complete. Expected, relative to '
        f'{Path.cwd()}:\n{_tree(paths)}'
    )
    if hints:
        message += f'\nGet it: {"; ".join(hints)}'
    raise UsageError(
        f'{message}\nAnother place: --cfg-options '
        'train_dataloader.dataset.data_root=... '
        'val_dataloader.dataset.data_root=..., and ann_file of the '
        'evaluators, or a link to it under data/'
    )
