"""Whether the weights that a config starts from are there."""

from collections.abc import Iterator
from pathlib import Path

from mmengine.config import ConfigDict

from anchorformer_mm.utils.checkpoint import require_checkpoint
from anchorformer_mm.utils.errors import UsageError


def require_pretrained_weights(cfg: ConfigDict) -> None:
    """Check the files of ``init_cfg=dict(type='Pretrained', ...)``.

    mmengine looks for them only after it has built everything else.

    Args:
        cfg: A whole config.

    Raises:
        UsageError: A local file is missing, and the message names where in the
            config it stands; or it cannot be read without running code.
            Names with a scheme (``https://...``, ``torchvision://...``,
            ``open-mmlab://...``) are not looked up.
    """
    missing = [
        f'{name}.checkpoint={path!r}'
        for name, path in _checkpoints(cfg.get('model') or {}, 'model')
        if '://' not in path and not Path(path).is_file()
    ]
    if missing:
        raise UsageError(
            'the weights that this config starts from are not there, '
            f'relative to {Path.cwd()}: {", ".join(missing)}. Train them '
            'first, or name another file, or start from scratch with '
            f'--cfg-options {missing[0].split(".checkpoint")[0]}=None'
        )
    for _, path in _checkpoints(cfg.get('model') or {}, 'model'):
        require_checkpoint(path)


def _checkpoints(node: object, name: str) -> Iterator[tuple[str, str]]:
    """Place and file of every ``Pretrained`` below a part of a config."""
    if isinstance(node, (list, tuple)):
        for i, item in enumerate(node):
            yield from _checkpoints(item, f'{name}.{i}')
    elif isinstance(node, dict):
        if node.get('type') == 'Pretrained' and node.get('checkpoint'):
            yield name, str(node['checkpoint'])
        for key, value in node.items():
            yield from _checkpoints(value, f'{name}.{key}')
