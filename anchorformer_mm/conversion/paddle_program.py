"""Paddle's inference models: a program and the tensors that it names.

``inference.pdmodel`` is a program as protobuf (Paddle 2), ``inference.json``
one as text (Paddle 3), and ``inference.pdiparams`` holds the tensors of both,
one after the other, in the order of their names. Facts of the formats follow
Paddle's ``framework.proto``, ``lod_tensor.cc`` and ``ir_serialize.cc``.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from anchorformer_mm.deployment.export import OPSET
from anchorformer_mm.utils.errors import UsageError

# Of the numbers that framework.proto gives to types.
_DTYPES = dict(enumerate(('?', '<i2', '<i4', '<i8', '<f2', '<f4', '<f8')))
# Types of variables that are no tensors: feed, fetch, reader, raw.
_NO_TENSORS = (9, 10, 15, 17)
# Names of operators in Paddle 2, where they differ from those in Paddle 3.
_KINDS = dict(
    depthwise_conv2d='conv2d',
    elementwise_add='add',
    elementwise_mul='multiply',
    hard_sigmoid='hardsigmoid',
    hard_swish='hardswish',
    nearest_interp_v2='nearest_interp',
    reshape2='reshape',
    transpose2='transpose',
)
# Inputs in order, where they are others than X and Y.
_INPUTS = dict(
    conv2d=('Input', 'Filter'),
    batch_norm=('X', 'Scale', 'Bias', 'Mean', 'Variance'),
)
# Values that Paddle 3 has as inputs.
_CONSTANTS = dict(
    pool2d='ksize', reshape='shape', concat='axis', split='sections axis'
)


@dataclass
class _Operator:
    """An operator by its name in Paddle 3."""

    kind: str
    inputs: list[str]
    outputs: list[str]
    values: dict


def read_program(path: str | Path) -> onnx.ModelProto:
    """Read a Paddle inference model as an ONNX model.

    The operators of a PicoDet's network are translated; those that follow its
    last convolutions are left where they are unknown.

    Args:
        path: A ``.pdiparams`` file, beside which the ``.pdmodel`` or
            ``.json`` of the same name lies.

    Raises:
        UsageError: One of the two files is missing, broken, or does not
            belong to the other, or a convolution depends on an operator that
            is not known.
    """
    path = Path(path)
    places = [path.with_suffix(suffix) for suffix in ('.json', '.pdmodel')]
    source = next((place for place in places if place.is_file()), None)
    if source is None:
        names = ' or '.join(place.name for place in places)
        raise UsageError(f'{path} needs its program beside it: {names}')
    read = _from_json if source.suffix == '.json' else _from_protobuf
    try:
        program = read(source.read_bytes())
        return _translated(source, program, read_tensors(path, program[1]))
    except UsageError:
        raise
    except Exception as error:
        # Broken files raise whatever their next part raises.
        raise UsageError(
            f'{source} cannot be read as a program of Paddle: '
            f'{type(error).__name__}: {error}'
        ) from None


def read_tensors(
    path: Path, shapes: Mapping[str, list[int]]
) -> dict[str, np.ndarray]:
    """Read a ``.pdiparams`` file, which holds tensors without their names.

    Raises:
        UsageError: It does not hold tensors of these shapes alone.
    """
    content, start, arrays = path.read_bytes(), 0, {}
    try:
        for name in sorted(shapes):
            version, levels = struct.unpack_from('<IQ', content, start)
            start += 12
            for _ in range(levels):
                (size,) = struct.unpack_from('<Q', content, start)
                start += 8 + size
            second, size = struct.unpack_from('<II', content, start)
            start += 8
            about = _fields(content[start : start + size])
            shape = [*map(_signed, about.get(2, []))]
            if version or second or shape != shapes[name]:
                raise ValueError(
                    f'{name} has shape {shape} instead of {shapes[name]}, in '
                    f'version {version or second} of the format'
                )
            dtype = np.dtype(_DTYPES[about[1][0]])
            array = np.frombuffer(content, dtype, prod(shape), start + size)
            arrays[name] = array.reshape(shape)
            start += size + array.nbytes
        if start != len(content):
            raise ValueError(f'{len(content) - start} bytes are left')
    except Exception as error:
        raise UsageError(
            f'{path} does not hold the {len(shapes)} tensors of its program: '
            f'{type(error).__name__}: {error}'
        ) from None
    return arrays


def _fields(data: bytes) -> dict[int, list]:
    """Values of a protobuf message by the numbers of their fields."""
    start, found = 0, {}

    def varint() -> int:
        nonlocal start
        value, first = 0, start
        while data[start] > 127:
            start += 1
        start += 1
        for byte in reversed(data[first:start]):
            value = value << 7 | byte & 127
        return value

    while start < len(data):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            value = varint()
        else:
            size = {1: lambda: 8, 2: varint, 5: lambda: 4}[wire]()
            value = data[start : start + size]
            start += size
        found.setdefault(number, []).append(value)
    if start > len(data):
        raise EOFError('cut short')
    return found


def _signed(value: int) -> int:
    return value - (value >> 63 << 64)


def _from_protobuf(content: bytes) -> tuple:
    """Operators, shapes of the tensors, and of what is fed, by name."""
    (block,) = map(_fields, _fields(content)[1])
    shapes, tensors, inputs = {}, {}, {}
    for variable in map(_fields, block[3]):
        name, about = variable[1][0].decode(), _fields(variable[2][0])
        if about[1][0] in _NO_TENSORS:
            continue
        tensor = _fields(about.get(3, [b''])[0]).get(1, [b''])[0]
        shapes[name] = [*map(_signed, _fields(tensor).get(2, []))]
        if variable.get(3, [0])[0]:
            tensors[name] = shapes[name]
    operators = [*map(_operator, map(_fields, block[4]))]
    for operator in operators:
        if operator.kind == 'feed':
            inputs |= {name: shapes[name] for name in operator.outputs}
    operators = [o for o in operators if o.kind != 'feed']
    return operators, tensors, inputs


def _operator(message: dict[int, list]) -> _Operator:
    """An operator of Paddle 2."""
    ports = []
    for number in (1, 2):
        found = map(_fields, message.get(number, []))
        named = {m[1][0].decode(): m.get(2, []) for m in found}
        ports.append({k: [n.decode() for n in v] for k, v in named.items()})
    inputs, outputs = ports
    values = {}
    for about in map(_fields, message.get(4, [])):
        name, kind = about[1][0].decode(), about[2][0]
        # The fields of AttrType INT, FLOAT, STRING, INTS, FLOATS, ..., LONGS.
        number = (3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15)[kind]
        items = about.get(number, [])
        if number in (4, 7):
            items = [struct.unpack('<f', item)[0] for item in items]
        elif number in (5, 8):
            items = [item.decode() for item in items]
        else:
            items = [*map(_signed, items)]
        values[name] = items if kind in (3, 4, 5, 7, 11) else items[0]
    kind = message[3][0].decode()
    kind = _KINDS.get(kind, kind)
    order = _INPUTS.get(kind, ('X', 'Y'))
    # Such as a size that is computed.
    if any(v for k, v in inputs.items() if k not in order):
        kind += ' of computed size'
    if kind == 'transpose':
        values['perm'] = values['axis']
    first = next(k for k in ('Output', 'Y', 'Out', *outputs) if k in outputs)
    names = [name for key in order for name in inputs.get(key, [])]
    return _Operator(kind, names, outputs[first], values)


def _from_json(content: bytes) -> tuple:
    (region,) = json.loads(content)['program']['regions']
    (block,) = region['blocks']
    operators, tensors, fed = [], {}, {}
    names, lists, constants = {}, {}, {}  # by the number of a value
    for entry in block['ops']:
        kind = entry['#'].split('.')[-1].rstrip('_')
        if kind == 'p':
            name = entry['A'][3]
            names[entry['O']['%']] = name
            tensors[name] = entry['O']['TT']['D'][1]
            continue
        values = {a['N']: _plain(a['AT']) for a in entry['A']}
        inputs = [item['%'] for item in entry['I'] if item['%']]
        outputs = [item['%'] for item in entry['O']]
        names |= {number: f'value_{number}' for number in outputs}
        if kind in ('full_int_array', 'full'):
            constants[outputs[0]] = values['value']
        elif kind == 'combine':
            lists[outputs[0]] = inputs
        elif kind == 'split' and entry['#'][0] == '0':
            # The parts, which a list stands for until here.
            operators[-1].outputs = [names[n] for n in outputs]
        elif kind in ('data', 'feed'):
            fed[names[outputs[0]]] = entry['O'][0]['TT']['D'][1]
        else:
            found = [constants[n] for n in inputs if n in constants]
            roles = _CONSTANTS.get(kind, '').split()
            values |= zip(roles, found, strict=False)
            data = [n for n in inputs if n not in constants]
            data = [m for n in data for m in lists.get(n, [n])]
            if kind == 'batch_norm':
                # Mean and variance come first.
                data = [data[i] for i in (0, 3, 4, 1, 2)]
            kind = _KINDS.get(kind, kind)
            ports = [[names[n] for n in part] for part in (data, outputs)]
            operators.append(_Operator(kind, *ports, values))
    return operators, tensors, fed


def _plain(value: dict) -> object:
    """A value of Paddle 3 without the types in it."""
    if isinstance(value['D'], list) and value['#'].endswith('a_array'):
        return [_plain(item) for item in value['D']]
    return value['D']


def _translated(
    path: Path, program: tuple, tensors: Mapping[str, np.ndarray]
) -> onnx.ModelProto:
    """Turn a program into an ONNX model, as far as it is known."""
    operators, _, inputs = program
    constants = {
        name: array.astype('f4') if array.dtype.kind == 'f' else array
        for name, array in tensors.items()
    }
    nodes, unknown = [], {}  # tensors that are not computed, and what for
    for operator in operators:
        sources, outputs = operator.inputs, operator.outputs
        cause = next(filter(None, map(unknown.get, sources)), None)
        if not cause:
            try:
                kind, *others, values = _node(operator, constants)
            except Exception:  # its values are others, or missing
                cause = operator.kind
        if cause:
            if operator.kind == 'conv2d':
                raise UsageError(
                    f'{path}: a convolution depends on {cause}, which is not '
                    'known here: export the model with paddle2onnx, in an '
                    'environment of its own, and convert the ONNX file'
                )
            unknown |= dict.fromkeys(outputs, cause)
            continue
        names = [f'{outputs[0]} {i}' for i in range(len(others))]
        constants |= zip(names, others, strict=True)
        if kind in ('Add', 'Mul') and others:
            sources = sources[:1]
        if kind != 'Split':
            outputs = outputs[:1]
        names = [*sources, *[''] * (kind == 'Resize'), *names]
        nodes.append(helper.make_node(kind, names, outputs, **values))
    used = {name for node in nodes for name in node.input}
    made = [name for node in nodes for name in node.output]
    ports = {
        name: [None if d < 0 else d for d in shape]
        for name, shape in inputs.items()
        if name in used
    }
    graph = helper.make_graph(
        nodes,
        'paddle',
        [helper.make_tensor_value_info(n, 1, s) for n, s in ports.items()],
        [onnx.ValueInfoProto(name=n) for n in made if n not in used],
        [
            numpy_helper.from_array(array, name)
            for name, array in constants.items()
            if name in used
        ],
    )
    opset = helper.make_opsetid('', OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def _node(operator: _Operator, tensors: dict[str, np.ndarray]) -> tuple:
    """ONNX's kind of an operator, constant inputs and attributes."""
    kind, values = operator.kind, operator.values
    window = {}
    if 'paddings' in values:
        if values['padding_algorithm'] != 'EXPLICIT':
            raise ValueError
        # Two for both sides, or top, bottom, left, right.
        pads = np.repeat(values['paddings'], 4 // len(values['paddings']))
        window = dict(pads=pads[[0, 2, 1, 3]], strides=values['strides'])
    match kind:
        case 'hardswish':
            return 'HardSwish', {}
        case 'relu' | 'sigmoid':
            return kind.capitalize(), {}
        case 'relu6':
            return 'Clip', np.float32(0), np.float32(6), {}
        case 'hardsigmoid':
            slope, offset = values['slope'], values['offset']
            return 'HardSigmoid', dict(alpha=slope, beta=offset)
        case 'batch_norm':
            return 'BatchNormalization', dict(epsilon=values['epsilon'])
        case 'conv2d':
            window['kernel_shape'] = tensors[operator.inputs[1]].shape[2:]
            window['dilations'] = values['dilations']
            return 'Conv', window | dict(group=values['groups'])
        case 'pool2d' if values['pooling_type'] == 'max':
            if not values['adaptive'] and not values['global_pooling']:
                window['kernel_shape'] = values['ksize']
                ceil_mode = int(values['ceil_mode'])
                return 'MaxPool', window | dict(ceil_mode=ceil_mode)
        case 'pool2d' if values['adaptive'] and values['ksize'] == [1, 1]:
            return 'GlobalAveragePool', {}
        case 'add' | 'multiply':
            kind = {'add': 'Add', 'multiply': 'Mul'}[kind]
            if values.get('axis', -1) == 1:
                # By the channels, which are not the last axis.
                return kind, tensors[operator.inputs[1]][:, None, None], {}
            if values.get('axis', -1) == -1:
                return kind, {}
        case 'nearest_interp' if not values['align_corners']:
            scale = np.float32([1, 1, *values['scale']])
            modes = dict(mode='nearest', nearest_mode='floor')
            modes['coordinate_transformation_mode'] = 'asymmetric'
            return 'Resize', scale, modes
        case 'concat':
            return 'Concat', dict(axis=int(values['axis']))
        case 'split' if values['sections']:
            sizes = np.int64(values['sections'])
            return 'Split', sizes, dict(axis=int(values['axis']))
        case 'reshape':
            return 'Reshape', np.int64(values['shape']), {}
        case 'transpose':
            return 'Transpose', dict(perm=values['perm'])
    raise KeyError(kind)
