"""Inference models, as Paddle 3 writes them."""

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

# Kinds, outputs and inputs.
OPERATORS = [
    line.split()
    for line in """
        conv2d              a   image w_0
        batch_norm_         b   a mean var norm_w norm_b
        hardswish           c   b
        pool2d              d   c
        depthwise_conv2d    e   d w_10
        reshape             e_b b_10
        add                 f   e e_b
        relu6               g   f
        split               h,i g
        concat              j   i h
        reshape             k   j
        transpose           l   k
        reshape             m   l
        pool2d              n   m
        hardsigmoid         o   n
        multiply            p   m o
        nearest_interp      q   p none none none
        add                 r   q c
        conv2d              s   r w_2
        unheard_of          t   s
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
    e_b=dict(shape=[1, -1, 1, 1]),
    h=dict(axis=1, sections=[1, 3]),
    j=dict(axis=1),
    k=dict(shape=[-1, 2, 2, 4, 4]),
    l=dict(perm=[0, 2, 1, 3, 4]),
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
    for kind, outputs, *inputs in operators:
        parts = outputs.split(',')
        values = dict(VALUES.get(parts[0], {}))
        if kind == 'concat':
            add('0.combine', ['list'], inputs)
            inputs = ['list']
        for name in ('ksize', 'shape', 'sections'):
            if name in values:
                add('1.full_int_array', [name], value=values.pop(name))
                inputs.append(name)
        if 'axis' in values:
            add('1.full', ['axis'], value=float(values.pop('axis')))
            inputs.append('axis')
        add(f'1.{kind}', ['parts'] if parts[1:] else parts, inputs, **values)
        if parts[1:]:
            add('0.split', parts, ['parts'])
    regions = [{'#': 'region_0', 'blocks': [{'#': 'block_0', 'ops': entries}]}]
    return json.dumps(dict(program=dict(regions=regions))).encode()


def write(path, operators=OPERATORS):
    """Write a model; the tensors stand in the order of their names."""
    content = b''
    for name in sorted(ARRAYS):
        # As protobuf: type 5, and each length after a key.
        about = bytes([8, 5, *(b for d in SHAPES[name] for b in (16, d))])
        content += struct.pack('<IQIi', 0, 0, 0, len(about)) + about
        content += ARRAYS[name].tobytes()
    path.write_bytes(content)
    path.with_suffix('.json').write_bytes(as_json(operators))
    return path


def test_a_model_computes_what_torch_does(tmp_path):
    model = read_program(write(tmp_path / 'a b.pdiparams'))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    image = torch.randn(2, 3, 16, 16, generator=torch.manual_seed(0))
    feed = {session.get_inputs()[0].name: image.numpy()}
    (found,) = session.run(None, feed)
    torch.testing.assert_close(torch.from_numpy(found), expected(image))


def test_other_files_are_refused(tmp_path):
    mish = [['mish', *o[1:]] if 'relu6' in o else o for o in OPERATORS]
    path = write(tmp_path / 'a.pdiparams', mish)
    program, content = path.with_suffix('.json'), path.read_bytes()
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
    with pytest.raises(UsageError, match=r'beside it, a\.json'):
        read_program(path)
