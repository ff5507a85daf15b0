"""Paddle's files are read without running code from them."""

import hashlib
import os
import pickle
import struct
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from anchorformer_mm.conversion.paddle_file import (
    _ADMITTED,
    NAME_TABLE,
    SLICES,
    read_paddle,
)
from anchorformer_mm.utils.errors import UsageError


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return tmp_path_factory.mktemp('paddle') / 'a.pdparams'


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


PLAIN = npst.arrays(
    st.sampled_from(['f2', '<f4', '>f4', 'f8', '>i8', 'i4', 'u1', '?']),
    npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@given(
    arrays=st.dictionaries(st.text(max_size=8), PLAIN, min_size=1),
    protocol=st.sampled_from([2, 3, 4]),
    ordered=st.booleans(),
    fortran=st.booleans(),
)
def test_arrays_come_as_they_went(path, arrays, protocol, ordered, fortran):
    content = OrderedDict(arrays) if ordered else dict(arrays)
    if fortran:
        content = {k: np.asfortranarray(v) for k, v in content.items()}
    write(path, {**content, NAME_TABLE: {'a': 'conv2d_0.w_0'}}, protocol)
    source = read_paddle(path)
    assert list(source.arrays) == list(arrays)
    for name, array in source.arrays.items():
        assert array.dtype == arrays[name].dtype.newbyteorder('=')
        np.testing.assert_array_equal(array, arrays[name])
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize('module', ['numpy.core', 'numpy._core'])
def test_either_module_of_numpy_may_have_written_it(path, module):
    content = {'a': np.arange(6, dtype='f4').reshape(2, 3), 'b': np.float32(3)}
    data = pickle.dumps(content, 2)
    for name in (b'numpy.core.multi', b'numpy._core.multi'):
        data = data.replace(name, f'{module}.multi'.encode())
    assert data.count(module.encode()) == 2
    path.write_bytes(data)
    arrays = read_paddle(path).arrays
    np.testing.assert_array_equal(arrays['a'], content['a'])
    assert arrays['b'].shape == () and arrays['b'] == 3


class Tensor:
    """As Paddle pickles a tensor."""

    def __init__(self, name, array):
        self.name, self.array = name, array

    def __reduce__(self):
        return tuple, ((self.name, self.array),)


@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_a_tensor_is_its_array(path, protocol):
    array = np.arange(4, dtype='f4')
    write(path, OrderedDict(a=Tensor('conv2d_0.w_0', array)), protocol)
    np.testing.assert_array_equal(read_paddle(path).arrays['a'], array)


@pytest.mark.parametrize('protocol', [2, 3])
def test_slices_are_joined(path, protocol):
    array = np.arange(24, dtype='f4').reshape(2, 3, 4)
    parts = {f'a@@.{i}': array.ravel()[9 * i : 9 * i + 9] for i in range(3)}
    record = dict(OriginShape=array.shape, slices=[*parts])
    write(path, {'b': array[0], **parts, SLICES: {'a': record}}, protocol)
    arrays = read_paddle(path).arrays
    assert set(arrays) == {'a', 'b'}
    np.testing.assert_array_equal(arrays['a'], array)


def test_strings_of_python_2_are_bytes(path):
    """Written by hand: opcodes as Python 2 and NumPy of that time used."""
    raw = np.array([1.5, -2], '<f4').tobytes()
    path.write_bytes(
        b'\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\n'
        b'ndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4'
        b'K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK'
        b'\x00tb\x89U\x08' + raw + b'tbs.'
    )
    np.testing.assert_array_equal(read_paddle(path).arrays['a'], [1.5, -2])


class Calls:
    """Asks for a call as it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Nested:
    class Inner:
        pass


class Persistent(pickle.Pickler):
    def persistent_id(self, obj):
        return 'storage' if isinstance(obj, bytearray) else None


def ran():
    raise AssertionError('code from the file ran')


SYSTEM = os.system.__module__  # posix or nt
BUILTINS = '(builtins|__builtin__)'  # the latter under protocol 2
HOSTILE = [
    (Calls(os.system, 'touch ran'), rf'asks for {SYSTEM}\.system, which is'),
    (Calls(eval, '__import__("os").getcwd()'), rf'asks for {BUILTINS}\.eval,'),
    # What Paddle itself writes for a tensor of a static graph.
    (
        Calls(eval, 'data', {'data': np.ones(2)}),
        rf'asks for {BUILTINS}\.eval,',
    ),
    (Calls(getattr, 'a', 'upper'), rf'asks for {BUILTINS}\.getattr,'),
    (Calls(bytearray, 4), rf'asks for {BUILTINS}\.bytearray,'),
    (torch.ones(2), r'asks for torch\._utils\._rebuild_tensor_v2,'),
    # Protocol 2 looks a nested class up in the one around it.
    (Nested.Inner(), rf'asks for (.*Nested\.Inner|{BUILTINS}\.getattr),'),
    (Calls(ran), r'asks for .*\.ran,'),
    (Calls(np.load, 'a.npy', None, True), r'asks for numpy\.load,'),
    (Calls(np.fromfile, '/etc/hostname'), r'asks for numpy\S*\.fromfile,'),
    (
        Calls(np.testing.assert_equal, 1, 2),
        r'asks for numpy\.testing\S*\.assert_equal,',
    ),
    (np.ma.masked_array([1.0]), r'asks for numpy\.ma'),
    (np.random.default_rng(0), r'asks for numpy\.random'),
    (np.array([{}, 'a'], object), r"array of dtype 'O8'"),
    (np.array(['text']), r"array of dtype 'U4'"),
    (np.array([1j]), r"array of dtype 'c16'"),
    (np.zeros(2, [('a', 'O'), ('b', 'f4')]), r"array of dtype 'V12'"),
    (np.datetime64(0, 's'), r"array of dtype 'M8'"),
]


@pytest.mark.smoke
@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize(('value', 'message'), HOSTILE)
def test_what_asks_for_more_is_refused_by_name(
    path, value, message, protocol, monkeypatch
):
    monkeypatch.chdir(path.parent)
    content = dict(a=np.ones(2), b=[{'c': value}], d=np.ones(2))
    write(path, content, protocol)
    with pytest.raises(UsageError, match=message) as error:
        read_paddle(path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)
    assert [p.name for p in path.parent.iterdir()] == ['a.pdparams']


def test_persistent_ids_are_refused(path):
    with path.open('wb') as file:
        Persistent(file, 2).dump(dict(a=bytearray(2)))
    with pytest.raises(UsageError, match="outside the file, 'storage', which"):
        read_paddle(path)


def made_up(code='f4', order='<', fields=b'N', shape=2):
    """A pickle of one array, whose description says anything."""
    data = pickle.dumps(dict(a=np.arange(2, dtype='<f4')), 3)
    for old, new in (
        (text('f4'), text(code)),
        (text('<'), text(order)),
        (b'NNNJ', b'NN' + fields + b'J'),
        (b'(K\x01K\x02\x85', b'(K\x01' + number(shape) + b'\x85'),
    ):
        assert data.count(old) == 1
        data = data.replace(old, new)
    return data


def text(value):
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def number(value):
    return b'\x8a\x09' + value.to_bytes(9, 'little', signed=True)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(order='O,'), r"byte order 'O,', which is none of"),
        (dict(code='O,f4'), r"dtype 'O,f4'"),
        (dict(code='f3'), 'TypeError'),
        (dict(fields=b'}'), 'a structured dtype'),
        (dict(shape=3), r'shape \(3,\) and dtype float32 in 8 bytes'),
        (dict(shape=-2), r'shape \(-2,\) and dtype float32 in 8 bytes'),
        (dict(shape=2**62), r'and dtype float32 in 8 bytes'),
    ],
)
def test_a_made_up_array_is_refused(path, change, message):
    path.write_bytes(made_up())
    np.testing.assert_array_equal(read_paddle(path).arrays['a'], [0, 1])
    path.write_bytes(made_up(**change))
    with pytest.raises(UsageError, match=message):
        read_paddle(path)


@pytest.mark.parametrize('instance', [b'', b'X\1\0\0\0a\x85R'])
@pytest.mark.parametrize('name', _ADMITTED)
def test_what_is_admitted_cannot_be_changed(path, name, instance):
    """Or a file could leave something behind for the next."""
    target = _ADMITTED[name]
    before = dict(vars(target)) if isinstance(target, type) else target
    module, name = name
    path.write_bytes(
        f'\x80\2c{module}\n{name}\n'.encode('latin1')
        + instance
        + b'N}X\7\0\0\0__doc__K\1s\x86b.'
    )
    with pytest.raises(UsageError, match=r'a\.pdparams '):
        read_paddle(path)
    after = dict(vars(target)) if isinstance(target, type) else target
    assert before == after


def test_a_file_cut_short_anywhere_is_refused(path):
    content = {'a': np.arange(3, dtype='f4'), 'b': Tensor('b', np.ones(2))}
    for protocol in (2, 4):
        data = pickle.dumps(content, protocol)
        for end in range(len(data)):
            path.write_bytes(data[:end])
            with pytest.raises(
                UsageError, match=r'a\.pdparams (cannot|is no)'
            ):
                read_paddle(path)


@given(data=st.binary(max_size=40))
def test_noise_is_refused(path, data):
    # Instructions that would ask for a memo of gigabytes.
    path.write_bytes(b'\x80\x04' + data.replace(b'r', b''))
    with pytest.raises(UsageError, match=r'a\.pdparams'):
        read_paddle(path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([np.ones(2)], 'holds a list, not a dictionary of arrays'),
        (np.ones(2), 'holds a ndarray, not a dictionary of arrays'),
        (None, 'holds a NoneType, not'),
        ({}, 'holds no array'),
        ({NAME_TABLE: {}}, 'holds no array'),
        ({'a': 1.5}, "holds a float by the key 'a'; only arrays"),
        ({'a': {'b': np.ones(2)}}, "holds a dict by the key 'a'"),
        ({'a': ('b', 'c')}, "holds a str by the key 'a'"),
        ({1: np.ones(2)}, 'holds a .* by the key 1; only arrays'),
        ({'a': np.ones(2), SLICES: {'b': {}}}, "KeyError: 'slices'"),
        ({'a': np.ones(2), SLICES: 3}, 'cannot be read as a .pdparams file'),
    ],
)
def test_other_contents_are_refused(path, content, message):
    with pytest.raises(UsageError, match=message):
        read_paddle(write(path, content))


def test_other_files_are_refused(path):
    torch.save(dict(a=torch.ones(2)), path)
    with pytest.raises(UsageError, match=r"is no pickle .* begins with b'PK"):
        read_paddle(path)
    with pytest.raises(UsageError, match=r'file not found: .*no\.pdparams'):
        read_paddle(path.with_name('no.pdparams'))


def test_nothing_is_imported(path):
    path.write_bytes(b'\x80\x02cantigravity\nfly\n.')
    with pytest.raises(UsageError, match=r'asks for antigravity\.fly, which'):
        read_paddle(path)
    assert 'antigravity' not in sys.modules
