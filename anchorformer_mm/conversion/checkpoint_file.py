"""Reading a checkpoint of whatever library without running its code."""

import argparse
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch

from anchorformer_mm.utils import checkpoint
from anchorformer_mm.utils.errors import UsageError


def read_checkpoint(path: str | Path) -> Mapping:
    """Read a checkpoint file onto the CPU.

    Args:
        path: What ``torch.save`` wrote, or a ``.safetensors`` file, for which
            the package of that name must be installed.

    Raises:
        UsageError: The file is not there, is no checkpoint, holds more than
            weights and plain data, or its package is missing.
    """
    path = Path(path)
    if path.suffix == '.safetensors' and path.is_file():
        return _read_safetensors(path)
    if hasattr(torch.serialization, 'add_safe_globals'):
        # Where the DeiT release keeps its command line; it holds plain data.
        torch.serialization.add_safe_globals([argparse.Namespace])
    return checkpoint.read_checkpoint(path)


def _read_safetensors(path: Path) -> Mapping:
    if find_spec('safetensors') is None:
        raise UsageError(
            f'{path} needs safetensors, which is not installed: pip install '
            'safetensors'
        )
    # Optional, and just found.
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UsageError(f'{path} is no safetensors file: {error}') from None
