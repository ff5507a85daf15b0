"""Checkpoints: read without running code from them, and fitted to models."""

import os
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import config_leaves
from anchorformer_mm.utils.text import listing, markdown_table, printable

_FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_STATISTICS = ('min', 'max', 'current', 'mean')


def _history_statistic(owner: type, name: str):
    """Stand in for ``getattr(HistoryBuffer, 'mean')`` in a checkpoint."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError(
            f'the checkpoint asks for attribute {name!r} of {owner!r}; only '
            f'{_STATISTICS} of HistoryBuffer are admitted'
        )
    return getattr(owner, name)


def admit_mmengine_checkpoints() -> None:
    """Let ``torch.load(..., weights_only=True)`` read a training checkpoint.

    Beside tensors, mmengine stores its history buffers and NumPy scalars.
    Exactly those classes are admitted; mmengine 0.10.7 admits none.
    """
    core = np._core if hasattr(np, '_core') else np.core
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            np.ndarray,
            np.dtype,
            core.multiarray._reconstruct,
            core.multiarray.scalar,
            *{type(np.dtype(t)) for t in ('f2', 'f4', 'f8', 'i4', 'i8', '?')},
            (_history_statistic, 'builtins.getattr'),
        ]
    )


@contextmanager
def weights_only() -> Iterator[None]:
    """Let no ``torch.load`` inside run code from a file.

    For functions that offer no argument for this, such as mmengine's
    ``load_checkpoint``. It works through an environment variable of torch,
    hence for all threads of the process.
    """
    before = {k: v for k, v in os.environ.items() if k == _FORCE}
    admit_mmengine_checkpoints()
    os.environ[_FORCE] = '1'
    try:
        yield
    finally:
        os.environ.pop(_FORCE, None)
        os.environ.update(before)
        # The forks take back what they admit, though we had admitted it.
        admit_mmengine_checkpoints()


def require_checkpoint(path: str | Path) -> None:
    """Refuse as :func:`read_checkpoint`; leave ``https://...`` to mmengine."""
    if '://' not in str(path):
        read_checkpoint(path)


def read_checkpoint(path: str | Path) -> Mapping:
    """Read a whole checkpoint onto the CPU, and run no code from it.

    Raises:
        UsageError: It is not there, was changed since it was written, cannot
            be read so, or holds no dictionary of weights.
    """
    if not Path(path).is_file():
        raise UsageError(f'checkpoint not found: {path}')
    try:
        if zipfile.is_zipfile(path):
            # torch does not look at the checksums.
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()
            if damaged:
                raise zipfile.BadZipFile(f'the checksum of {damaged} differs')
        with weights_only(), warnings.catch_warnings():
            # They tell of formats that are not torch's, as the error does.
            warnings.simplefilter('ignore')
            checkpoint = torch.load(
                path, map_location='cpu', weights_only=True
            )
    except Exception as error:
        # Whatever torch, zip or pickle make of damaged bytes.
        raise UsageError(
            f'{path} cannot be read as weights and plain data '
            f'({_reason(error)})'
        ) from error
    weights = checkpoint
    if isinstance(checkpoint, Mapping):
        weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, Mapping):
        raise UsageError(
            f'{path} is no checkpoint: it holds a {type(weights).__name__}, '
            'not a dictionary of weights'
        )
    return checkpoint


def _reason(error: Exception) -> str:
    """Reason of an error, without torch's advice to run the file's code."""
    text = str(error)
    told = re.search(
        r'(?i)[^.\n]*\bunsupported\b.*|WeightsUnpickler error:\s*\S.*', text
    )
    words = (told.group() if told else text.strip().split('\n')[0]).split()
    sentence = ' '.join(words).split('. ')[0].rstrip('.')
    # Names in a pickle can be anything.
    reason = f'{type(error).__name__}: {printable(sentence)[:200]}'
    return reason.removesuffix(': ')


def require_pretrained_weights(cfg: Mapping) -> None:
    """Check the files of teachers, ``init_cfg=dict(type='Pretrained', ...)``.

    mmengine looks for them only after it has built everything else.

    Args:
        cfg: A whole config.

    Raises:
        UsageError: A local file is missing, or cannot be read without running
            code. Names with a scheme (``https://...``, ``torchvision://...``)
            are not looked up.
    """
    for name, path in config_leaves(cfg.get('model') or {}, 'model'):
        if name == 'model.teacher_ckpt' and path:
            try:
                require_checkpoint(path)
            except UsageError as error:
                raise UsageError(f'the teacher, {name}: {error}') from None
        if not name.endswith('init_cfg.checkpoint') or not path:
            continue
        if '://' not in str(path) and not Path(path).is_file():
            raise UsageError(
                'the weights that this config starts from are not there, '
                f'relative to {Path.cwd()}: {name}={str(path)!r}. Train them '
                'first, or name another file, or start from scratch with '
                f'--cfg-options {name.removesuffix(".checkpoint")}=None'
            )
        require_checkpoint(path)


def fit_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    path: str | Path,
    strict: bool,
) -> tuple[list[str], str]:
    """Compare a checkpoint's weights with those of a model; load nothing.

    Buffers, and parameters that are not trained, may be absent.

    Args:
        model: Without what wraps it for several processes.
        weights: The ``state_dict`` of a checkpoint.
        path: Name of the checkpoint, for messages.
        strict: Whether the checkpoint must be of this model.

    Returns:
        tuple[list[str], str]: Names of weights that are in both with the same
        shape; and if the checkpoint lacks others, or some of the model do not
        train, a table by part of the model of what is taken, what is not, and
        what is frozen.

    Raises:
        UsageError: A strict one does not fit, or nothing of it does.
    """
    own = model.state_dict()
    parameters = dict(model.named_parameters())
    trained = {n for n, p in parameters.items() if p.requires_grad}
    taken, problems, columns, others = [], [], Counter(), []
    frozen = Counter(n.partition('.')[0] for n in parameters.keys() - trained)
    for name in dict.fromkeys([*own, *weights]):
        if name not in own:
            column = 'only in it'
        elif name not in weights:
            if name not in trained:
                continue
            column = 'not in it'
            problems.append(f'{name} is not in the checkpoint')
        elif weights[name].shape == own[name].shape:
            column = 'taken'
            taken.append(name)
        else:
            column = 'other shape'
            others.append(name)
            problems.append(
                f'{name} is {tuple(weights[name].shape)} in the checkpoint '
                f'and {tuple(own[name].shape)} in the model'
            )
        columns[name.partition('.')[0], column] += 1
    if problems and (strict or not taken):
        more = f', and {len(problems) - 1} more' if len(problems) > 1 else ''
        raise UsageError(f'{path} is of another model: {problems[0]}{more}')
    if not problems and not frozen:
        return taken, ''
    header = ('taken', 'other shape', 'not in it', 'only in it')
    table = markdown_table(
        ('weights', *header, 'frozen'),
        [
            (part, *(str(columns[part, c]) for c in header), str(frozen[part]))
            for part in dict.fromkeys(part for part, _ in columns)
        ],
    )
    if others:
        table += f'\nother shape: {listing(others, 8)}'
    return taken, table
