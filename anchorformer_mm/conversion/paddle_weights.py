"""From the weights of a PaddleDetection model to those of ours."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from anchorformer_mm.conversion.paddle_names import (
    NAMINGS,
    PARTS,
    Naming,
    kind_in_file,
)
from anchorformer_mm.conversion.paddle_report import PaddleKey
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.text import (
    listing,
)

# The distances that a head's distributions are over: 0, 1, ..., reg_max.
DISTANCES = 'head.distribution_project.project'


@dataclass(frozen=True)
class PaddleConversion:
    """Weights of our model, and where they come from.

    Args:
        state_dict: By the names of the whole model.
        keys: What became of every key of the file, in its order.
        counters: Names of the batch norms' counters, which Paddle does not
            have and which are zero.
        as_drawn: Names of weights that nothing in the file is for. They are
            not in ``state_dict``.
    """

    state_dict: dict[str, Tensor]
    keys: list[PaddleKey]
    counters: list[str]
    as_drawn: list[str]


def convert_paddle(
    arrays: Mapping[str, np.ndarray],
    model: nn.Module,
    backbone_only: bool = False,
) -> PaddleConversion:
    """Bring the weights of a PaddleDetection model under our names.

    Args:
        arrays: By Paddle's keys: of a whole PicoDet v1 or v2, or with
            ``backbone_only`` also of an ESNet or LCNet trained on ImageNet,
            whose keys have no prefix and whose classifier is left.
        model: Our detector, with ``backbone``, ``neck`` and ``bbox_head``; it
            is not changed.
        backbone_only: Leave neck and head. The backbone may then also be an
            AnchorESNet: its last stage stays as it is drawn.

    Raises:
        UsageError: The file is of another model: of another kind, something
            is missing, of another shape, or has no place in ours.
    """
    prefixed = any(key.startswith('backbone.') for key in arrays)
    if not prefixed and not backbone_only:
        raise UsageError(
            'the file holds no whole detector: no key begins with backbone. '
            'A backbone alone is read with --backbone-only. The first keys: '
            f'{listing(arrays)}'
        )
    parts = ['backbone'] if backbone_only else list(PARTS)
    namings = {}
    for part in parts:
        prefix = f'{part}.' if prefixed else ''
        names = (
            k.removeprefix(prefix) for k in arrays if k.startswith(prefix)
        )
        namings[part] = _naming(part, names, getattr(model, PARTS[part]))
    target = {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(tuple(f'{PARTS[part]}.' for part in parts))
    }
    filling = _Filling(arrays, target, namings, prefixed)
    return filling.finish([filling.place(key) for key in arrays])


def _naming(part: str, names: Iterable[str], module: nn.Module) -> Naming:
    """How a part is named, if that of the file and that of ours agree."""
    ours = type(module).__name__
    if ours not in NAMINGS:
        raise UsageError(
            f'the {part} of the config is {ours}; only of '
            f'{", ".join(NAMINGS)} are there weights'
        )
    naming = NAMINGS[ours]
    theirs = kind_in_file(part, names)
    if theirs is None:
        raise UsageError(f'the file has no {part} of a PicoDet')
    if theirs != naming.kind:
        raise UsageError(
            f'the file has another {part} than the config: {theirs}, not '
            f'{ours}'
        )
    return naming


class _Filling:
    """Fills our weights, key by key."""

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        target: Mapping[str, Tensor],
        namings: Mapping[str, Naming],
        prefixed: bool,
    ) -> None:
        self.arrays = arrays
        self.target = target
        self.namings = namings
        self.prefixed = prefixed
        self.sources: dict[str, str] = {}  # their keys by our names
        self.values: dict[str, Tensor] = {}
        self.foreign: list[str] = []
        self.misfits: list[str] = []

    def place(self, key: str) -> PaddleKey:
        """Fill what one key is for."""
        part, _, name = key.partition('.')
        if not self.prefixed:
            name, body = key, self.namings['backbone'].body
            part = 'backbone' if re.match(body, name) else 'other'
        became = partial(PaddleKey, part, key, self.arrays[key].shape)
        if part not in self.namings:
            if part in PARTS:
                return became(note='not of the backbone')
            if not self.prefixed:
                return became(note='not of the backbone, such as a classifier')
            self.foreign.append(key)
            return became()
        naming = self.namings[part]
        for pattern, reason in naming.unused.items():
            if re.search(pattern, name):
                return became(note=reason)
        name = naming.ours(name)
        if naming.replaced and re.match(naming.replaced, name):
            return became(note='other layers in our model')
        pieces = self._pieces(key, f'{PARTS[part]}.', name, naming.joined)
        for ours, piece in pieces.items():
            if ours in self.sources:
                return became(note=f'same as {self._same(key, ours)}')
            self._check(key, ours, piece)
            self.sources[ours] = key
            self.values[ours] = torch.from_numpy(piece.astype(np.float32))
        return became(
            targets=tuple(pieces),
            note='' if len(pieces) == 1 else 'split along the first axis',
        )

    def _pieces(
        self, key: str, prefix: str, name: str, joined: tuple[str, str] | None
    ) -> dict[str, np.ndarray]:
        """What one array is for, by our names."""
        array = np.atleast_1d(self.arrays[key])
        if not joined or not name.startswith(joined[0]):
            return {prefix + name: array}
        if DISTANCES not in self.arrays:
            raise UsageError(
                f'the file has no {DISTANCES}, which tells reg_max'
            )
        # All sides and bins of the distances come last.
        row = len(array) - 4 * self.arrays[DISTANCES].size
        second = joined[1] + name.removeprefix(joined[0])
        return {prefix + name: array[:row], prefix + second: array[row:]}

    def _same(self, key: str, ours: str) -> str:
        """The key that has filled a weight before, with the same values."""
        first = self.sources[ours]
        if not np.array_equal(self.arrays[key], self.arrays[first]):
            raise UsageError(f'{key} and {first} are both {ours}, but differ')
        return first

    def _check(self, key: str, ours: str, piece: np.ndarray) -> None:
        """Note what does not fit; refuse what is no weight."""
        array = self.arrays[key]
        if array.dtype.kind != 'f':
            raise UsageError(
                f'{key} is of {array.dtype}; weights are floating-point '
                'numbers'
            )
        if ours not in self.target:
            self.foreign.append(key)
        elif self.target[ours].shape != piece.shape:
            what = f'{key} has shape {array.shape}'
            if piece.shape != array.shape:
                what += f', {piece.shape} of it for {ours}'
            self.misfits.append(
                f'{what}, but {ours} of the config has '
                f'{tuple(self.target[ours].shape)}'
            )
        elif key == DISTANCES and not np.allclose(
            # The average that Paddle saves can be off by a factor near 1.
            array,
            np.arange(len(array)),
            rtol=0.01,
        ):
            raise UsageError(f'{key} must be near 0, 1, 2, ..., got {array}')

    def finish(self, keys: list[PaddleKey]) -> PaddleConversion:
        """Check the whole, and put it in our model's order."""
        if self.misfits:
            more = len(self.misfits) - 1
            raise UsageError(
                self.misfits[0] + (f'; {more} more do not fit' if more else '')
            )
        if self.foreign:
            raise UsageError(
                'the model of the config has no place for '
                f'{listing(self.foreign)}'
            )
        replaced = self.namings['backbone'].replaced
        state_dict, counters, as_drawn, missing = {}, [], [], []
        for name, value in self.target.items():
            if name in self.values:
                state_dict[name] = self.values[name]
            elif replaced and re.match(
                replaced, name.removeprefix('backbone.')
            ):
                as_drawn.append(name)
            elif name.endswith('.num_batches_tracked'):
                state_dict[name] = torch.zeros_like(value)
                counters.append(name)
            else:
                missing.append(name)
        if as_drawn and len(self.namings) > 1:
            missing = as_drawn + missing
        if missing:
            raise UsageError(
                f'the file has nothing for {listing(missing)} of the config'
            )
        return PaddleConversion(state_dict, keys, counters, as_drawn)
