"""Configs of models to measure: a file, or a config that a library ships."""

import argparse
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config

from anchorformer_mm.engine.launch import load_config
from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError

LIBRARIES = ('mmdet', 'mmpretrain', 'mmseg')


def config_path(name: str | Path) -> Path:
    """Where a config lies.

    Args:
        name: A path; or one of a library's own, such as
            ``'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'``. It is looked
            up among the files of the library that is installed, also of
            mmseg's fork, whose configs ``_base_`` does not find.

    Raises:
        UsageError: There is no such library or config.
    """
    library, mark, file = str(name).partition('::')
    if not mark:
        return Path(name)
    if library not in LIBRARIES:
        raise UsageError(
            f'the library of a config must be one of {", ".join(LIBRARIES)}, '
            f'got {name}'
        )
    check_environment([library])
    folder = Path(find_spec(library).origin).parent / '.mim' / 'configs'
    path = folder / file
    if not path.is_file():
        raise UsageError(f'{library} has no config {file} in {folder}')
    return path


def read_config(
    name: str | Path, overrides: Mapping[str, Any] | None = None
) -> Config:
    """Read a config to build its model; no data needs to be there.

    Args:
        name: As of :func:`config_path`.
        overrides: Keys with dots, and their values.

    Raises:
        UsageError: There is no such config, or what it needs is missing.
    """
    args = argparse.Namespace(
        config=str(config_path(name)),
        cfg_options=dict(overrides) if overrides else None,
        local_rank=0,
        work_dir=None,
        launcher='none',
    )
    return load_config(args, [])
