"""Paddle's inference models: a program and the tensors that it names.

``inference.json`` is a program, as Paddle 3 writes it, and
``inference.pdiparams`` holds its tensors, one after the other, in the order of
their names. Facts of the formats follow Paddle's ``framework.proto``,
``lod_tensor.cc`` and ``ir_serialize.cc``.
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

ADVICE = (
    'export the model with paddle2onnx, in an environment of its own, and '
    'convert the ONNX file'
)
# Of the numbers that framework.proto gives to types.
_DTYPES = dict(enumerate(('?', '<i2', '<i4', '<i8', '<f2', '<f4', '<f8')))
# Values that are inputs of an operator.
_CONSTANTS = dict(
    pool2d='ksize', reshape='shape', concat='axis', split='sections axis'
)


@dataclass
class _Operator:
    kind: str
    inputs: list[str]
    outputs: list[str]
    values: dict


def read_program(path: str | Path) -> onnx.ModelProto:
    """Read a Paddle inference model as an ONNX model.

    The operators of a PicoDet's network are translated; those that follow its
    last convolutions are left where they are unknown.

    Args:
        path: A ``.pdiparams`` file, beside which the ``.json`` of the same
            name lies.

    Raises:
        UsageError: One of the two files is missing, broken, or does not
            belong to the other, or a convolution depends on an operator that
            is not known.
    """
    path = Path(path)
    source = path.with_suffix('.json')
    if not source.is_file():
        raise UsageError(
            f'{path} needs its program beside it, {source.name}, as Paddle 3 '
            f'writes it; of Paddle 2 {ADVICE}'
        )
    try:
        program = _from_json(source.read_bytes())
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
            # The type and the lengths, as protobuf with a key before each.
            kind, *shape = _varints(content[start : start + size])[1::2]
            if version or second or shape != shapes[name]:
                raise ValueError(
                    f'{name} has shape {shape} instead of {shapes[name]}, in '
                    f'version {version or second} of the format'
                )
            dtype = np.dtype(_DTYPES[kind])
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


def _varints(data: bytes) -> list[int]:
    """Numbers of seven bits a byte, the lowest first."""
    numbers, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    return numbers


def _from_json(content: bytes) -> tuple:
    """Operators, shapes of the tensors, and of what is fed, by name."""
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
            ports = [[names[n] for n in part] for part in (data, outputs)]
            operators.append(_Operator(kind, *ports, values))
    return operators, tensors, fed


def _plain(value: dict) -> object:
    """A value without the types in it."""
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
            if operator.kind.endswith('conv2d'):
                raise UsageError(
                    f'{path}: a convolution depends on {cause}, which is not '
                    f'known here: {ADVICE}'
                )
            unknown |= dict.fromkeys(outputs, cause)
            continue
        names = [f'{outputs[0]} {i}' for i in range(len(others))]
        constants |= zip(names, others, strict=True)
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
        case 'conv2d' | 'depthwise_conv2d':
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
        case 'add':
            return 'Add', {}
        case 'multiply':
            return 'Mul', {}
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
