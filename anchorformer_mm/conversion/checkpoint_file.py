"""Reading a checkpoint of whatever library without running its code."""

import argparse
import pickle
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch

from anchorformer_mm.utils.checkpoint import admit_mmengine_checkpoints
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
    if not path.is_file():
        raise UsageError(f'checkpoint not found: {path}')
    if path.suffix == '.safetensors':
        checkpoint = _read_safetensors(path)
    else:
        checkpoint = _read_torch(path)
    if not isinstance(checkpoint, Mapping):
        raise UsageError(
            f'{path} holds a {type(checkpoint).__name__}, not a dictionary '
            'of weights'
        )
    return checkpoint


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


def _read_torch(path: Path) -> object:
    admit_mmengine_checkpoints()
    if hasattr(torch.serialization, 'add_safe_globals'):
        # Where the DeiT release keeps its command line; it holds plain data.
        torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as e:
        reason = str(e).strip().splitlines() or [type(e).__name__]
        raise UsageError(
            f'{path} cannot be read as a checkpoint of weights: {reason[0]}'
        ) from None
