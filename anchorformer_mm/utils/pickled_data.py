"""Data that would run code when it is read."""

from collections.abc import Iterator, Sequence

from mmengine.config import ConfigDict

from anchorformer_mm.utils.errors import UsageError

# Names by which mmengine's `load` takes a file for a pickle.
SUFFIXES = ('.pkl', '.pickle')


def require_no_pickles(cfg: ConfigDict, splits: Sequence[str]) -> None:
    """Check that a model, data sets and evaluators read no pickle.

    Reading a pickle runs what is in it, and mmengine reads one wherever a
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
        if value.endswith(SUFFIXES)
    ]
    if found:
        raise UsageError(
            'a pickle runs code when it is read, and is not read here: '
            f'{", ".join(found)}. If you trust the file, convert it to JSON: '
            'mmengine.dump(mmengine.load("a.pkl"), "a.json")'
        )


def _read_files(node: object, name: str) -> Iterator[tuple[str, str]]:
    """Place and value of every text in a part of a config.

    Results that an evaluator writes are no file to read.
    """
    if isinstance(node, str):
        yield name, node
    elif isinstance(node, (list, tuple)):
        for i, item in enumerate(node):
            yield from _read_files(item, f'{name}.{i}')
    elif isinstance(node, dict):
        for key, value in node.items():
            if key != 'out_file_path':
                yield from _read_files(value, f'{name}.{key}')
