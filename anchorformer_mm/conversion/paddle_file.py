"""Reading Paddle's ``.pdparams`` without running code from it.

The file is a pickle of a dictionary of NumPy arrays. Facts of what Paddle
writes follow its ``framework/io.py`` and ``framework/io_utils.py``.
"""

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path

import numpy as np

from anchorformer_mm.utils.errors import UsageError

# Paddle's own entries: parameter names by keys, and arrays cut into slices.
NAME_TABLE = 'StructuredToParameterName@@'
SLICES = 'UnpackBigParamInfor@@'

_BYTE_ORDERS = ('<', '>', '=', '|')
_PLAIN_DTYPE = re.compile('[biuf][0-9]{1,2}')


@dataclass(frozen=True)
class PaddleFile:
    """What a ``.pdparams`` file holds.

    Args:
        arrays: By Paddle's keys, in the file's order; of booleans, integers
            or floating-point numbers.
        sha256: Of the file, in hexadecimal digits.
    """

    arrays: Mapping[str, np.ndarray]
    sha256: str


def read_paddle(path: str | Path) -> PaddleFile:
    """Read a ``.pdparams`` file of a state dict.

    A pickle is a program. This one may call for NumPy arrays, tuples and
    dictionaries; whatever else it names is refused before it is looked up.
    Not even NumPy's own unpickling runs: stand-ins take down what an array
    is made of, and it is made here. What :func:`paddle.save` does to a state
    dict is undone: arrays cut into slices are joined, a tensor kept as its
    name and its array is the array, and the table of parameter names, which
    holds no weight, is dropped.

    Args:
        path: Written by ``paddle.save`` with pickle protocol 2, 3 or 4.

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
        loaded = _Unpickler(BytesIO(content), encoding='latin1').load()
        arrays = _arrays(loaded)
    except UsageError as error:
        raise UsageError(f'{path} {error}') from None
    except Exception as error:
        # Broken pickles raise whatever their last instruction raises.
        reason = str(error).strip().splitlines() or ['']
        raise UsageError(
            f'{path} cannot be read as a .pdparams file: '
            f'{type(error).__name__}: {reason[0]}'
        ) from None
    return PaddleFile(arrays, hashlib.sha256(content).hexdigest())


# Stand-ins are classes with a `__setstate__`: a pickle can set attributes on
# anything else that it names.
class _DType:
    """What NumPy pickles of a dtype."""

    def __init__(self, code: str, *_) -> None:
        if not isinstance(code, str) or not _PLAIN_DTYPE.fullmatch(code):
            raise UsageError(
                f'holds an array of dtype {code!r}; only booleans, integers '
                'and floating-point numbers are read'
            )
        self.code = code
        self.order = '='

    def __setstate__(self, state: tuple) -> None:
        _, self.order, subarray, names, fields, *_ = state
        if (subarray, names, fields) != (None, None, None):
            raise UsageError(
                f'holds an array of a structured dtype ({names!r}); only '
                'plain ones are read'
            )
        if self.order not in _BYTE_ORDERS:
            raise UsageError(
                f'holds an array of byte order {self.order!r}, which is none '
                f'of {_BYTE_ORDERS}'
            )

    def build(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Bytes:
    """Bytes under protocol 2, which spells them as a call."""

    def __init__(self, text: str = '', encoding: str = 'latin1') -> None:
        if encoding != 'latin1':
            raise UsageError(f'asks for the codec {encoding!r}')
        self.text = text

    def __setstate__(self, state: object) -> None:
        raise UsageError(f'gives bytes the state {state!r}')

    def build(self) -> bytes:
        return self.text.encode('latin1')


class _Array:
    """What NumPy pickles of an array."""

    def __init__(self, *_) -> None:
        self.state: tuple | None = None

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def build(self) -> np.ndarray:
        """The array, with numbers in the byte order of this machine."""
        _, shape, dtype, is_fortran, raw = self.state
        if isinstance(raw, str):  # pickled by Python 2
            raw = _Bytes(raw)
        raw = raw.build() if isinstance(raw, _Bytes) else raw
        dtype = dtype.build()
        if len(raw) != prod(shape) * dtype.itemsize:
            raise UsageError(
                f'holds an array of shape {shape} and dtype {dtype} in '
                f'{len(raw)} bytes'
            )
        order = 'F' if is_fortran else 'C'
        array = np.ndarray(shape, dtype, raw, order=order)
        return array.astype(dtype.newbyteorder('='), order='C')


class _Scalar(_Array):
    """What NumPy pickles of one number, as an array without axes."""

    def __init__(self, dtype: _DType, raw: bytes | str | _Bytes) -> None:
        self.state = (1, (), dtype, False, raw)


_ADMITTED = {
    ('numpy', 'ndarray'): 'numpy.ndarray',  # named, but never called
    ('numpy', 'dtype'): _DType,
    ('_codecs', 'encode'): _Bytes,
    ('__builtin__', 'bytes'): _Bytes,
    # A tensor outside a state dict's top level is a tuple by a call.
    ('builtins', 'tuple'): tuple,
    ('__builtin__', 'tuple'): tuple,
    # Attributes can be set on an OrderedDict, and not on a dict.
    ('collections', 'OrderedDict'): dict,
}
for _core in ('numpy.core', 'numpy._core'):  # before and from NumPy 2
    _ADMITTED[f'{_core}.multiarray', '_reconstruct'] = _Array
    _ADMITTED[f'{_core}.multiarray', 'scalar'] = _Scalar


class _Unpickler(pickle.Unpickler):
    """Looks nothing up but what is admitted."""

    def find_class(self, module: str, name: str) -> object:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise UsageError(
                f'asks for {module}.{name}, which is refused: only NumPy '
                'arrays and plain containers are read'
            ) from None

    def persistent_load(self, pid: object) -> None:
        raise UsageError(
            f'asks for an object outside the file, {pid!r}, which is refused'
        )


def _arrays(loaded: object) -> dict[str, np.ndarray]:
    """Arrays by name, from what the pickle gave."""
    if not isinstance(loaded, dict):
        kind = type(loaded.build() if isinstance(loaded, _Array) else loaded)
        raise UsageError(
            f'holds a {kind.__name__}, not a dictionary of arrays'
        )
    entries = dict(loaded)
    entries.pop(NAME_TABLE, None)
    slices = entries.pop(SLICES, {})
    arrays = {key: _array(key, value) for key, value in entries.items()}
    for key, record in slices.items():
        parts = [arrays.pop(part) for part in record['slices']]
        arrays[key] = np.concatenate(parts).reshape(record['OriginShape'])
    if not arrays:
        raise UsageError('holds no array')
    return arrays


def _array(key: object, value: object) -> np.ndarray:
    if isinstance(value, tuple) and len(value) == 2:
        value = value[1]
    if not isinstance(key, str) or not isinstance(value, _Array):
        raise UsageError(
            f'holds a {type(value).__name__} by the key {key!r}; only arrays '
            'by their names are read'
        )
    return value.build()
