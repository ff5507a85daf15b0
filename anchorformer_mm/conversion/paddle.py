"""PicoDet weights of PaddleDetection: reading ``.pdparams``, names, report.

A ``.pdparams`` file is a pickle of a dictionary of NumPy arrays, as Paddle's
``framework/io.py`` and ``framework/io_utils.py`` write it. Names follow
PaddleDetection's ``esnet.py``, ``lcnet.py``, ``csp_pan.py``, ``lc_pan.py``,
``pico_head.py`` and ``gfl_head.py``. Layouts need no change: convolutions are
(out, in, height, width) in both, and there are no linear layers.
"""

import pickle
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.text import listing

# Paddle's own entries: parameter names by keys, and arrays cut into slices.
NAME_TABLE = 'StructuredToParameterName@@'
SLICES = 'UnpackBigParamInfor@@'

# Parts of a model by Paddle's names, and ours.
PARTS = dict(backbone='backbone', neck='neck', head='bbox_head')
# The distances that a head's distributions are over: 0, 1, ..., reg_max.
DISTANCES = 'head.distribution_project.project'
ACTIONS = ('carried', 'renamed', 'left')


# The stand-ins for what a pickle may name have a `__setstate__`: a pickle can
# set attributes on anything else that it names.
class _Bytes(bytes):
    """Bytes under protocol 2, which spells them as a call."""

    def __new__(cls, text: str = '', encoding: str = 'latin1') -> '_Bytes':
        return super().__new__(cls, text.encode('latin1'))

    def __setstate__(self, state: object) -> None:
        raise UsageError(f'gives bytes the state {state!r}')


class _DType:
    """What NumPy pickles of a dtype."""

    def __init__(self, code: str, *_) -> None:
        if not isinstance(code, str) or not re.fullmatch('[biuf]\\d+', code):
            raise UsageError(
                f'holds an array of dtype {code!r}; only booleans, integers '
                'and floating-point numbers are read'
            )
        self.code, self.order = code, '='

    def __setstate__(self, state: tuple) -> None:
        _, self.order, *fields = state[:5]
        if self.order not in ('<', '>', '=', '|') or fields != [None] * 3:
            raise UsageError(f'holds an array of a structured dtype {state!r}')


class _Array:
    """What NumPy pickles of an array."""

    def __init__(self, *_) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, raw = state
        if isinstance(raw, str):  # pickled by Python 2
            raw = raw.encode('latin1')
        array = np.ndarray(
            shape,
            np.dtype(dtype.order + dtype.code),
            raw,
            order='F' if is_fortran else 'C',
        )
        if array.nbytes != len(raw):
            raise UsageError(
                f'holds an array of shape {shape} in {len(raw)} bytes'
            )
        self.array = array.astype(array.dtype.newbyteorder('='), order='C')


class _Scalar(_Array):
    """What NumPy pickles of one number, as an array without axes."""

    def __init__(self, dtype: _DType, raw: bytes | str) -> None:
        self.__setstate__((1, (), dtype, False, raw))


class _Unpickler(pickle.Unpickler):
    """Looks nothing up but what is admitted."""

    ADMITTED = {
        ('numpy', 'ndarray'): 'numpy.ndarray',  # named, but never called
        ('numpy', 'dtype'): _DType,
        # Before and from NumPy 2.
        ('numpy.core.multiarray', '_reconstruct'): _Array,
        ('numpy._core.multiarray', '_reconstruct'): _Array,
        ('numpy.core.multiarray', 'scalar'): _Scalar,
        ('numpy._core.multiarray', 'scalar'): _Scalar,
        ('_codecs', 'encode'): _Bytes,
        ('__builtin__', 'bytes'): _Bytes,
        # A tensor outside a state dict's top level is a tuple by a call.
        ('builtins', 'tuple'): tuple,
        ('__builtin__', 'tuple'): tuple,
        # Attributes can be set on an OrderedDict, and not on a dict.
        ('collections', 'OrderedDict'): dict,
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ADMITTED:
            raise UsageError(
                f'asks for {module}.{name}, which is refused: only NumPy '
                'arrays and plain containers are read'
            )
        return self.ADMITTED[module, name]

    def persistent_load(self, pid: object) -> None:
        raise UsageError(
            f'asks for an object outside the file, {pid!r}, which is refused'
        )


def read_paddle(path: str | Path) -> dict[str, np.ndarray]:
    """Read a ``.pdparams`` file of a state dict, and run no code from it.

    A pickle is a program. This one may call for NumPy arrays, tuples and
    dictionaries; whatever else it names is refused before it is looked up,
    and stand-ins for NumPy's own unpickling make the arrays. Slices of an
    array are joined; a tensor kept as its name and its array is the array.

    Args:
        path: Written by ``paddle.save`` with pickle protocol 2, 3 or 4.

    Returns:
        dict: Arrays of booleans, integers or floating-point numbers by
        Paddle's keys, in the file's order.

    Raises:
        UsageError: The file is not there, is no pickle or cut short, asks
            for anything else (which the message names), or holds something
            else than arrays by their names.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f'file not found: {path}')
    content = path.read_bytes()
    if not content.startswith(pickle.PROTO):
        raise UsageError(
            f'{path} is no pickle of protocol 2 to 4, such as Paddle writes; '
            f'it begins with {content[:4]}'
        )
    try:
        # Latin-1 for what Python 2 has pickled, as Paddle reads it.
        return _arrays(_Unpickler(BytesIO(content), encoding='latin1').load())
    except UsageError as error:
        raise UsageError(f'{path} {error}') from None
    except Exception as error:
        # Broken pickles raise whatever their last instruction raises.
        reason = ' '.join(str(error).split())
        raise UsageError(
            f'{path} cannot be read as a .pdparams file: '
            f'{type(error).__name__}: {reason}'
        ) from None


def _arrays(loaded: object) -> dict[str, np.ndarray]:
    """Arrays by name, from what the pickle gave."""
    if not isinstance(loaded, dict):
        loaded = getattr(loaded, 'array', loaded)
        raise UsageError(
            f'holds a {type(loaded).__name__}, not a dictionary of arrays'
        )
    entries = {key: v for key, v in loaded.items() if key != NAME_TABLE}
    slices = entries.pop(SLICES, {})
    arrays = {}
    for key, value in entries.items():
        if isinstance(value, tuple) and len(value) == 2:
            value = value[1]
        if not isinstance(key, str) or not isinstance(value, _Array):
            advice = ''
            if isinstance(value, dict):
                advice = (
                    '. If these are the weights, take them out: paddle.save('
                    f"paddle.load(FILE)[{key!r}], 'weights.pdparams')"
                )
            raise UsageError(
                f'holds a {type(value).__name__} by the key {key!r}; only '
                f'arrays by their names are read{advice}'
            )
        arrays[key] = value.array
    for key, record in slices.items():
        parts = [arrays.pop(part) for part in record['slices']]
        arrays[key] = np.concatenate(parts).reshape(record['OriginShape'])
    if not arrays:
        raise UsageError('holds no array')
    return arrays


# A name that a part of this kind has in a file. A file that has the signs of
# two is of the first.
SIGNS = dict(
    backbone={
        'ESNet': r'^2_1\._se\.',
        # By the names of its layers an ESNet without gates.
        'ShuffleNetV2': r'^2_1\._conv_pw_2\.',
        'LCNet': r'^blocks2\.0\.dw_conv\.',
        # Of the same file name as the first, with other widths.
        'ESNet of PaddleClas': r'^blocks\.0\.dw_1\.',
    },
    neck=dict(
        CSPPAN=r'^top_down_blocks\.\d+\.main_conv\.',
        LCPAN=r'^top_down_blocks\.\d+\.\d+\.dw_conv\.',
    ),
    head={
        'one of share_cls_reg: False': r'^conv_feat\.reg_conv_',
        'PicoHeadV2': r'^conv_feat\.se\.',
        'PicoHead': r'^head_cls0\.',
    },
)
# Keys of a backbone in a file without prefixes, beside its classifier's.
_OF_BACKBONE = r'(_conv1|[234]_\d+|conv1|blocks[2-6])\.'
# Made by the class that the original's heads inherit from.
_UNUSED = r'head\.p\d+_feat\.scale_reg$'
# Our names for the stage that AnchorESNet replaces.
_REPLACED = r'backbone\.stages\.2\.[12]\.'

# Patterns and replacements that lead from Paddle's names of a part to ours,
# in turn, by our class; all names are without the part that they begin with.
_NORM = ((r'\._mean$', '.running_mean'), (r'\._variance$', '.running_var'))
# A depthwise and a pointwise convolution in one module.
_SEPARABLE = (
    (r'\.dwconv\.', '.depthwise_conv.conv.'),
    (r'\.bn1\.', '.depthwise_conv.bn.'),
    (r'\.pwconv\.', '.pointwise_conv.conv.'),
    (r'\.bn2\.', '.pointwise_conv.bn.'),
)
# The same as two convolutions with a norm each (LCNet, LC-PAN).
_LC_BLOCK = (
    (r'\.dw_conv\.', '.depthwise_conv.'),
    (r'\.pw_conv\.', '.pointwise_conv.'),
)
_GATE = ((r'(\._?se)\.conv1\.', r'\1.1.'), (r'(\._?se)\.conv2\.', r'\1.3.'))
_NECK = (
    *_NORM,
    *_SEPARABLE,
    (r'^conv_t\.convs\.', 'laterals.'),
    (r'^first_top_conv\.', 'extra_lateral.'),
    (r'^second_top_conv\.', 'extra_top.'),
    (r'^top_down_blocks\.', 'top_down.'),
    (r'^bottom_up_blocks\.', 'bottom_up.'),
)
_HEAD = (
    *_NORM,
    (r'^conv_feat\.cls_conv_dw([\d.]+)\.', r'towers.\1.depthwise_conv.'),
    (r'^conv_feat\.cls_conv_pw([\d.]+)\.', r'towers.\1.pointwise_conv.'),
    (r'^(towers\..*)\.norm\.', r'\1.bn.'),
    # Since 2022-09 v2 has its predictors under two names.
    (r'^head_(cls|reg)(_list\.)?(\d+)\.', r'conv_\1.\3.'),
    (r'^distribution_project\.', 'integral.'),
)
_ESNET = (
    *_NORM,
    *_GATE,
    (r'\._conv\.', '.conv.'),
    (r'\._batch_norm\.', '.bn.'),
    (r'^_conv1\.', 'stem.0.'),
    # Blocks are counted from 1, stages from 2.
    (
        r'^([234])_(\d+)\.',
        lambda m: f'stages.{int(m[1]) - 2}.{int(m[2]) - 1}.',
    ),
    # The stride-2 block, which is the first of its stage.
    (r'\._conv_dw_1\.', '.branch1.0.'),
    (r'\._conv_linear_1\.', '.branch1.1.'),
    (r'\._conv_pw_2\.', '.branch2.0.'),
    (r'\._conv_dw_2\.', '.branch2.1.'),
    (r'^(stages\.\d\.0)\._se\.', r'\1.branch2.2.'),
    (r'\._conv_linear_2\.', '.branch2.3.'),
    (r'\._conv_dw_mv1\.', '.fuse.0.'),
    (r'\._conv_pw_mv1\.', '.fuse.1.'),
    # The stride-1 block.
    (r'\._conv_pw\.', '.primary.'),
    (r'\._conv_dw\.', '.cheap.'),
    (r'\._se\.', '.se.'),
    (r'\._conv_linear\.', '.linear.'),
)
RULES = dict(
    ESNet=_ESNET,
    AnchorESNet=_ESNET,
    LCNet=(
        *_NORM,
        *_LC_BLOCK,
        *_GATE,
        (r'^conv1\.', 'stem.0.'),
        # The first blocks run at strides 2 and 4, in our stem.
        (r'^blocks2\.0\.', 'stem.1.'),
        (r'^blocks3\.(\d+)\.', lambda m: f'stem.{int(m[1]) + 2}.'),
        (r'^blocks([456])\.', lambda m: f'stages.{int(m[1]) - 4}.'),
    ),
    CSPPAN=(
        # Ahead of the rest: a bottleneck ends in a separable convolution.
        (r'\.blocks\.(\d+)\.conv1\.', r'.blocks.\1.0.'),
        (r'\.blocks\.(\d+)\.conv2\.', r'.blocks.\1.1.'),
        *_NECK,
    ),
    LCPAN=(*_NECK, *_LC_BLOCK),
    PicoHead=_HEAD,
    PicoHeadV2=(
        *_HEAD,
        (r'^conv_feat\.se\.(\d+)\.fc\.', r'se.\1.fc.'),
        (r'^conv_feat\.se\.(\d+)\.conv\.', r'se.\1.'),
        (r'^cls_align\.(\d+)\.dwconv\.', r'align.\1.layers.0.conv.'),
        (r'^cls_align\.(\d+)\.bn1\.', r'align.\1.layers.0.bn.'),
        (r'^cls_align\.(\d+)\.pwconv\.', r'align.\1.layers.1.conv.'),
        (r'^cls_align\.(\d+)\.bn2\.', r'align.\1.layers.1.bn.'),
    ),
)


@dataclass(frozen=True)
class PaddleKey:
    """What became of one key, and why or how.

    ``targets`` are the names of our weights that it fills: none, one, or two
    that are one in Paddle.
    """

    part: str  # backbone, neck, head or other
    key: str
    shape: tuple[int, ...]
    targets: tuple[str, ...] = ()
    note: str = ''
    values: int = 0  # that the targets take

    @property
    def action(self) -> str:
        """One of ``ACTIONS``: the same name, another, or not at all."""
        if not self.targets:
            return 'left'
        return 'carried' if self.targets == (self.key,) else 'renamed'

    def __str__(self) -> str:
        words = [self.action, self.key, str(self.shape)]
        if self.action == 'renamed':
            words += ['->', ', '.join(self.targets)]
        return ' '.join(words) + (f' ({self.note})' if self.note else '')


def key_counts(keys: Sequence[PaddleKey]) -> list[dict]:
    """Count keys by ``ACTIONS``, and values taken, by part and of all."""
    rows = []
    for part in [*dict.fromkeys(key.part for key in keys), 'all']:
        mine = [key for key in keys if part in (key.part, 'all')]
        counts = dict.fromkeys(ACTIONS, 0) | Counter(k.action for k in mine)
        values = sum(key.values for key in mine)
        rows.append(dict(part=part, values=values) | counts)
    return rows


def convert_paddle(
    arrays: Mapping[str, np.ndarray],
    model: nn.Module,
    backbone_only: bool = False,
) -> tuple[dict[str, Tensor], list[PaddleKey]]:
    """Bring the weights of a PaddleDetection model under our names.

    Args:
        arrays: By Paddle's keys: of a whole PicoDet v1 or v2, or with
            ``backbone_only`` also of an ESNet or LCNet trained on ImageNet,
            whose keys have no prefix and whose classifier is left.
        model: Our detector, with ``backbone``, ``neck`` and ``bbox_head``; it
            is not changed.
        backbone_only: Leave neck and head.

    Returns:
        tuple: Weights by the names of the whole model, in its order, where
        the batch norms' counters, which Paddle does not have, are zero; and
        what became of every key of the file, in its order. There are none for
        the last stage of an AnchorESNet, whose file is an ESNet's, and none
        for the classes if the file has other classes.

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
    kinds = {}
    for part in ['backbone'] if backbone_only else PARTS:
        kinds[part] = type(getattr(model, PARTS[part], None)).__name__
        prefix = f'{part}.' if prefixed else ''
        names = [
            k.removeprefix(prefix) for k in arrays if k.startswith(prefix)
        ]
        if kinds[part] not in RULES:
            raise UsageError(
                f'the {part} of the config is {kinds[part]}; only of '
                f'{", ".join(RULES)} are there weights'
            )
        found = [
            kind
            for kind, sign in SIGNS[part].items()
            if any(re.search(sign, name) for name in names)
        ]
        if not found:
            raise UsageError(f'the file has no {part} of a PicoDet')
        if found[0] != kinds[part].removeprefix('Anchor'):
            raise UsageError(
                f'the file has another {part} than the config: {found[0]}, '
                f'not {kinds[part]}'
            )
    prefixes = tuple(f'{PARTS[part]}.' for part in kinds)
    target = {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(prefixes)
    }
    keys, values, sources, misfits, foreign = [], {}, {}, [], []
    other_classes = set()
    for key, array in arrays.items():
        part, pieces, note = _pieces(key, arrays, kinds, prefixed)
        first = next(map(sources.get, pieces), None)
        if first:
            # The same predictor under two names.
            if not np.array_equal(array, arrays[first]):
                raise UsageError(
                    f'{key} and {first} are both {next(iter(pieces))}, but '
                    'differ'
                )
            pieces, note = {}, f'same as {first}'
        if array.dtype.kind != 'f' and pieces:
            raise UsageError(
                f'{key} is of {array.dtype}; weights are floating-point '
                'numbers'
            )
        for ours, piece in list(pieces.items()):
            sources[ours] = key
            if _of_other_classes(ours, piece, target):
                other_classes.add(ours)
                note = 'other classes in our model'
                del pieces[ours]
                continue
            values[ours] = torch.from_numpy(piece.astype(np.float32))
            if ours not in target:
                foreign.append(key)
            elif target[ours].shape != piece.shape:
                what = f'{key} has shape {array.shape}'
                if piece.shape != array.shape:
                    what += f', {piece.shape} of it for {ours}'
                misfits.append(
                    f'{what}, but {ours} of the config has '
                    f'{tuple(target[ours].shape)}'
                )
        if part not in (*PARTS, 'other'):
            foreign.append(key)
        size = sum(piece.size for piece in pieces.values())
        keys.append(
            PaddleKey(part, key, array.shape, tuple(pieces), note, size)
        )
    if misfits:
        more = f'; {len(misfits) - 1} more do not fit' * (len(misfits) > 1)
        raise UsageError(misfits[0] + more)
    if foreign:
        raise UsageError(
            f'the model of the config has no place for {listing(foreign)}'
        )
    state_dict, missing = {}, []
    for name, value in target.items():
        if name in values:
            state_dict[name] = values[name]
        elif name in other_classes or (
            kinds['backbone'] == 'AnchorESNet' and re.match(_REPLACED, name)
        ):
            continue
        elif name.endswith('.num_batches_tracked'):
            state_dict[name] = torch.zeros_like(value)
        else:
            missing.append(name)
    if missing:
        raise UsageError(
            f'the file has nothing for {listing(missing)} of the config'
        )
    # The average that Paddle saves can be off by a factor near 1.
    bins = arrays[DISTANCES] if 'head' in kinds else np.arange(1)
    if not np.allclose(bins, np.arange(bins.size), rtol=0.01):
        raise UsageError(f'{DISTANCES} must be near 0, 1, 2, ..., got {bins}')
    return state_dict, keys


def _of_other_classes(
    name: str, array: np.ndarray, target: Mapping[str, Tensor]
) -> bool:
    """Tell whether a predictor of classes differs in their number alone."""
    return (
        name.startswith('bbox_head.conv_cls.')
        and name in target
        and target[name].shape[1:] == array.shape[1:]
        and len(target[name]) != len(array)
    )


def _pieces(
    key: str,
    arrays: Mapping[str, np.ndarray],
    kinds: Mapping[str, str],
    prefixed: bool,
) -> tuple[str, dict[str, np.ndarray], str]:
    """Part of a key, what its array is for by our names, and a note."""
    array = np.atleast_1d(arrays[key])
    part, _, name = key.partition('.')
    if not prefixed:
        if not re.match(_OF_BACKBONE, key):
            return 'other', {}, 'not of the backbone, such as a classifier'
        part, name = 'backbone', key
    if part not in kinds:
        return part, {}, 'not of the backbone' if part in PARTS else ''
    if re.match(_UNUSED, key):
        return part, {}, 'not used by the original'
    for pattern, replacement in RULES[kinds[part]]:
        name = re.sub(pattern, replacement, name)
    ours = f'{PARTS[part]}.{name}'
    if kinds[part] == 'AnchorESNet' and re.match(_REPLACED, ours):
        return part, {}, 'other layers in our model'
    if kinds[part] != 'PicoHead' or not name.startswith('conv_cls.'):
        return part, {ours: array}, ''
    if DISTANCES not in arrays:
        raise UsageError(f'the file has no {DISTANCES}, which tells reg_max')
    # All sides and bins of the distances come last.
    row = len(array) - 4 * arrays[DISTANCES].size
    second = ours.replace('.conv_cls.', '.conv_reg.')
    pieces = {ours: array[:row], second: array[row:]}
    return part, pieces, 'split along the first axis'
