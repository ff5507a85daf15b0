"""Inference models in both formats of Paddle, as Paddle writes them."""

import json
import struct
from itertools import count

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from anchorformer_mm.conversion.paddle_program import read_program
from anchorformer_mm.utils.errors import UsageError

# Kinds in Paddle 2 and 3, outputs and inputs.
OPERATORS = [
    line.split()
    for line in """
        conv2d              conv2d              a   image w_0
        batch_norm          batch_norm_         b   a norm_w norm_b mean var
        hard_swish          hardswish           c   b
        pool2d              pool2d              d   c
        depthwise_conv2d    depthwise_conv2d    e   d w_10
        elementwise_add     add                 f   e b_10
        relu6               relu6               g   f
        split               split               h,i g
        concat              concat              j   i h
        reshape2            reshape             k   j
        transpose2          transpose           l   k
        reshape2            reshape             m   l
        pool2d              pool2d              n   m
        hard_sigmoid        hardsigmoid         o   n
        elementwise_mul     multiply            p   m o
        nearest_interp_v2   nearest_interp      q   p
        elementwise_add     add                 r   q c
        conv2d              conv2d              s   r w_2
        unheard_of          unheard_of          t   s
    """.strip().splitlines()
]
WINDOW = dict(padding_algorithm='EXPLICIT', strides=[1, 1], paddings=[0, 0])
CONV = WINDOW | dict(dilations=[1, 1], groups=1)
POOL = WINDOW | dict(pooling_type='avg', adaptive=True, ksize=[1, 1])
POOL |= dict(global_pooling=False, ceil_mode=False)
TWICE = dict(strides=[2, 2], paddings=[1, 1])
# By output.
VALUES = dict(
    a=CONV | TWICE,
    b=dict(epsilon=1e-3),
    d=POOL | TWICE | dict(pooling_type='max', adaptive=False, ksize=[3, 3]),
    e=CONV | dict(groups=4, paddings=[1, 1, 0, 2]),
    f=dict(axis=1),
    h=dict(axis=1, sections=[1, 3]),
    j=dict(axis=1),
    k=dict(shape=[-1, 2, 2, 4, 4]),
    l=dict(axis=[0, 2, 1, 3, 4]),
    m=dict(shape=[-1, 4, 4, 4]),
    n=POOL,
    o=dict(slope=0.2, offset=0.4),
    q=dict(scale=[2.0, 2.0], align_corners=False),
    s=CONV,
)
SHAPES = dict(w_0=[4, 3, 3, 3], w_10=[4, 1, 3, 3], b_10=[4], w_2=[6, 4, 1, 1])
SHAPES |= dict.fromkeys(('norm_w', 'norm_b', 'mean', 'var'), [4])
RNG = np.random.default_rng(0)
ARRAYS = {k: RNG.uniform(0.1, 1, s).astype('f4') for k, s in SHAPES.items()}
IMAGE = [-1, 3, 16, 16]


def expected(image):
    """What the operators compute, with torch."""
    p = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    a = F.conv2d(image, p['w_0'], stride=2, padding=1)
    norm = (p[k] for k in ('mean', 'var', 'norm_w', 'norm_b'))
    c = F.hardswish(F.batch_norm(a, *norm, eps=1e-3))
    d = F.pad(F.max_pool2d(c, 3, 2, 1), (0, 2, 1, 1))
    g = F.relu6(F.conv2d(d, p['w_10'], p['b_10'], groups=4))
    j = torch.cat([g[:, 1:], g[:, :1]], 1)
    m = j.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2)
    m = m * (0.2 * m.mean((2, 3), keepdim=True) + 0.4).clamp(0, 1)
    return F.conv2d(F.interpolate(m, scale_factor=2) + c, p['w_2'])


def field(number, value):
    """A field of a protobuf message, and of 0 a mere number."""
    if isinstance(value, float):
        return field(0, number << 3 | 5) + struct.pack('<f', value)
    if isinstance(value, int) and number:
        return field(0, number << 3) + field(0, value)
    if isinstance(value, int):
        low, value = value & 127, (value & 2**64 - 1) >> 7
        return bytes([low | 128]) + field(0, value) if value else bytes([low])
    value = value.encode() if isinstance(value, str) else value
    return field(0, number << 3 | 2) + field(0, len(value)) + value


def fields(number, values):
    return b''.join(field(number, value) for value in values)


def as_protobuf(operators):
    block = field(1, 0) + field(2, -1)
    for name, shape in [('image', IMAGE), *SHAPES.items()]:
        kind = field(3, field(1, field(1, 5) + fields(2, shape)))
        about = field(1, name) + field(2, field(1, 7) + kind)
        block += field(3, about + field(3, name != 'image'))
    codes = {int: (0, 3), float: (1, 4), str: (2, 5), bool: (6, 10)}
    for kind, _, outputs, *inputs in [('feed', '', 'image'), *operators]:
        ports = dict(X=inputs[:1], Y=inputs[1:])
        if kind == 'concat':
            ports = dict(X=inputs)
        elif kind.endswith('conv2d'):
            ports = dict(Filter=inputs[1:], Input=inputs[:1])
        elif kind == 'batch_norm':
            roles = ('X', 'Scale', 'Bias', 'Mean', 'Variance')
            ports = {r: [n] for r, n in zip(roles, inputs, strict=True)}
        text = fields(
            1, (field(1, k) + fields(2, v) for k, v in ports.items())
        )
        role = dict(batch_norm='Y').get(kind, 'Out')
        text += field(2, field(1, role) + fields(2, outputs.split(',')))
        text += field(3, kind)
        for name, value in VALUES.get(outputs[0], {}).items():
            items = value if isinstance(value, list) else [value]
            code, number = codes[type(items[0])]
            several = 3 * (items is value)
            about = field(1, name) + field(2, code + several)
            text += field(4, about + fields(number + several, items))
        block += field(4, text)
    return field(1, block) + field(4, field(1, 0))


def as_json(operators):
    numbers, entries, new = {}, [], count(1)

    def plain(value):
        if isinstance(value, list):
            return {'#': '0.a_array', 'D': [plain(item) for item in value]}
        return {'#': f'0.a_{type(value).__name__}', 'D': value}

    def add(kind, outputs, inputs=(), shape=(), **values):
        numbers['none'] = 0
        inputs = [{'%': numbers[name]} for name in inputs]
        numbers.update((name, next(new)) for name in outputs)
        about = {'#': '0.t_dtensor', 'D': [{'#': '0.t_f32'}, shape, 'NCHW']}
        outputs = [{'%': numbers[name], 'TT': about} for name in outputs]
        values = [{'N': k, 'AT': plain(v)} for k, v in values.items()]
        entries.append({'#': kind, 'A': values, 'I': inputs, 'O': outputs})

    for name, shape in SHAPES.items():
        add('p', [name], shape=shape)
        entries[-1] |= {'A': [0, 1, 1, name], 'O': entries[-1]['O'][0]}
    add('1.data', ['image'], shape=IMAGE, name='image')
    for _, kind, outputs, *inputs in operators:
        values = dict(VALUES.get(outputs[0], {}))
        if kind == 'batch_norm_':
            inputs = [inputs[i] for i in (0, 3, 4, 1, 2)]
        elif kind == 'add' and values.pop('axis', None):
            add('1.full_int_array', ['shape'], value=[1, -1, 1, 1])
            add('1.reshape', ['bias'], [inputs.pop(), 'shape'])
            inputs.append('bias')
        elif kind == 'concat':
            add('0.combine', ['list'], inputs)
            inputs = ['list']
        elif kind == 'transpose':
            values['perm'] = values.pop('axis')
        elif kind == 'nearest_interp':
            inputs += ['none'] * 3
        for name in ('ksize', 'shape', 'sections'):
            if name in values:
                add('1.full_int_array', [name], value=values.pop(name))
                inputs.append(name)
        if 'axis' in values:
            add('1.full', ['axis'], value=float(values.pop('axis')))
            inputs.append('axis')
        parts = outputs.split(',')
        add(f'1.{kind}', ['parts'] if parts[1:] else parts, inputs, **values)
        if parts[1:]:
            add('0.split', parts, ['parts'])
    regions = [{'#': 'region_0', 'blocks': [{'#': 'block_0', 'ops': entries}]}]
    return json.dumps(dict(program=dict(regions=regions))).encode()


FORMATS = {'.json': as_json, '.pdmodel': as_protobuf}


def write(path, suffix, operators=OPERATORS):
    """Write a model; the tensors stand in the order of their names."""
    content = b''
    for name in sorted(ARRAYS):
        about = field(1, 5) + fields(2, SHAPES[name])
        content += struct.pack('<IQIi', 0, 0, 0, len(about)) + about
        content += ARRAYS[name].tobytes()
    path.write_bytes(content)
    path.with_suffix(suffix).write_bytes(FORMATS[suffix](operators))
    return path


@pytest.mark.parametrize('suffix', FORMATS)
def test_a_model_computes_what_torch_does(suffix, tmp_path):
    model = read_program(write(tmp_path / 'a b.pdiparams', suffix))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    image = torch.randn(2, 3, 16, 16, generator=torch.manual_seed(0))
    feed = {session.get_inputs()[0].name: image.numpy()}
    (found,) = session.run(None, feed)
    torch.testing.assert_close(torch.from_numpy(found), expected(image))


@pytest.mark.parametrize('suffix', FORMATS)
def test_other_files_are_refused(suffix, tmp_path):
    mish = [['mish', 'mish', *o[2:]] if 'relu6' in o else o for o in OPERATORS]
    path = write(tmp_path / 'a.pdiparams', suffix, mish)
    program, content = path.with_suffix(suffix), path.read_bytes()
    with pytest.raises(UsageError, match='depends on mish, .*paddle2onnx'):
        read_program(path)
    for broken in (content[:-1], content + b'0', b'', content[::-1]):
        path.write_bytes(broken)
        with pytest.raises(UsageError, match='not hold the 8 tensors'):
            read_program(path)
    program.write_bytes(program.read_bytes()[:-9])
    with pytest.raises(UsageError, match='cannot be read as a program'):
        read_program(path)
    program.unlink()
    with pytest.raises(UsageError, match=r'a\.json or a\.pdmodel'):
        read_program(path)
