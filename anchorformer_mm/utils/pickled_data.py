"""Data that would run code when it is read."""

import os
from collections.abc import Iterator, Sequence

from mmengine.config import ConfigDict

from anchorformer_mm.utils.errors import UsageError

# What mmengine's `load` takes a file for by the end of its name, and reads in
# a way that runs code: its YAML loader makes any object of Python too.
FORMATS = ('pkl', 'pickle', 'yml', 'yaml')
# Results that evaluators write are no file to read.
_WRITTEN = ('out_file_path', 'proposals_file')


def require_no_pickles(cfg: ConfigDict, splits: Sequence[str]) -> None:
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
        f'{name}={value!r}'
        for part in parts
        for name, value in _read_files(cfg.get(part), part)
        # As mmengine splits them: a file may be called 'pkl' and no more.
        if value.rpartition('.')[2] in FORMATS
    ]
    if found:
        raise UsageError(
            'pickles and YAML run code when mmengine reads them, and are not '
            f'read here: {", ".join(found)}. If you trust the file, convert '
            'it to JSON: mmengine.dump(mmengine.load("a.pkl"), "a.json")'
        )


def _read_files(node: object, name: str) -> Iterator[tuple[str, str]]:
    """Place and value of every text and path in a part of a config."""
    if isinstance(node, (str, os.PathLike)):
        yield name, os.fspath(node)
    elif isinstance(node, (list, tuple)):
        for i, item in enumerate(node):
            yield from _read_files(item, f'{name}.{i}')
    elif isinstance(node, dict):
        for key, value in node.items():
            if key not in _WRITTEN:
                yield from _read_files(value, f'{name}.{key}')
