"""PicoDet from Paddle is read without running code, and computes the same."""

import os
import pickle
import re
import runpy
import struct
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from mmengine.registry import MODELS
from torch import nn

from anchorformer_mm.conversion.paddle import convert_paddle, read_paddle
from anchorformer_mm.utils.errors import UsageError

PICODET = SimpleNamespace(
    **runpy.run_path(Path(__file__).with_name('paddle_picodet.py'))
)
NAME_TABLE = 'StructuredToParameterName@@'
SLICES = 'UnpackBigParamInfor@@'


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
    found = read_paddle(path)
    assert list(found) == list(arrays)
    for name, array in found.items():
        assert array.dtype == arrays[name].dtype.newbyteorder('=')
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize('module', ['numpy.core', 'numpy._core'])
def test_either_module_of_numpy_may_have_written_it(path, module):
    content = {'a': np.arange(6, dtype='f4').reshape(2, 3), 'b': np.float32(3)}
    data = pickle.dumps(content, 2)
    for name in (b'numpy.core.multi', b'numpy._core.multi'):
        data = data.replace(name, f'{module}.multi'.encode())
    assert data.count(module.encode()) == 2
    path.write_bytes(data)
    arrays = read_paddle(path)
    np.testing.assert_array_equal(arrays['a'], content['a'])
    assert arrays['b'].shape == () and arrays['b'] == 3


class Tensor:
    """As Paddle pickles a tensor."""

    def __init__(self, name, array):
        self.name, self.array = name, array

    def __reduce__(self):
        return tuple, ((self.name, self.array),)


@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_tensors_and_slices_are_arrays(path, protocol):
    array = np.arange(24, dtype='f4').reshape(2, 3, 4)
    parts = {f'a@@.{i}': array.ravel()[9 * i : 9 * i + 9] for i in range(3)}
    record = dict(OriginShape=array.shape, slices=[*parts])
    tensor = Tensor('conv2d_0.w_0', array[0])
    write(path, {'b': tensor, **parts, SLICES: {'a': record}}, protocol)
    arrays = read_paddle(path)
    assert set(arrays) == {'a', 'b'}
    np.testing.assert_array_equal(arrays['a'], array)
    np.testing.assert_array_equal(arrays['b'], array[0])


def test_strings_of_python_2_are_bytes(path):
    """Written by hand: opcodes as Python 2 and NumPy of that time used."""
    raw = np.array([1.5, -2], '<f4').tobytes()
    path.write_bytes(
        b'\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\n'
        b'ndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4'
        b'K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK'
        b'\x00tb\x89U\x08' + raw + b'tbs.'
    )
    np.testing.assert_array_equal(read_paddle(path)['a'], [1.5, -2])


class Calls:
    """Asks for a call as it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Nested:
    class Inner:
        pass


def ran():
    raise AssertionError('code from the file ran')


HOSTILE = [
    (Calls(os.system, 'touch ran'), 'system'),
    # Paddle itself writes such a call for a tensor of a static graph.
    (Calls(eval, 'data', {'data': np.ones(2)}), 'eval'),
    (Calls(getattr, 'a', 'upper'), 'getattr'),
    (torch.ones(2), 'torch._utils._rebuild_tensor_v2'),
    # Protocol 2 looks a nested class up in the one around it.
    (Nested.Inner(), '(Inner|getattr)'),
    (Calls(ran), 'ran'),
    (Calls(np.fromfile, '/etc/hostname'), 'fromfile'),
    (np.ma.masked_array([1.0]), 'numpy.ma'),
    (np.array([{}, 'a'], object), "'O8'"),
    (np.array(['text']), "'U4'"),
    (np.zeros(2, [('a', 'O'), ('b', 'f4')]), "'V12'"),
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
    with pytest.raises(UsageError, match=rf'^.*a\.pdparams .*{message}'):
        read_paddle(path)
    assert [p.name for p in path.parent.iterdir()] == ['a.pdparams']


def test_persistent_ids_are_refused(path):
    path.write_bytes(b'\x80\2Pstorage\n.')
    with pytest.raises(UsageError, match="'storage'"):
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
    'change',
    [
        dict(order='O,'),
        dict(code='O,f4'),
        dict(code='f3'),
        dict(fields=b'}'),
        dict(shape=1),
        dict(shape=3),
        dict(shape=-2),
        dict(shape=2**62),
    ],
)
def test_a_made_up_array_is_refused(path, change):
    path.write_bytes(made_up())
    np.testing.assert_array_equal(read_paddle(path)['a'], [0, 1])
    path.write_bytes(made_up(**change))
    with pytest.raises(UsageError, match=r'a\.pdparams'):
        read_paddle(path)


ADMITTED = [
    ('numpy', 'ndarray'),
    ('numpy', 'dtype'),
    ('numpy.core.multiarray', '_reconstruct'),
    ('numpy._core.multiarray', 'scalar'),
    ('_codecs', 'encode'),
    ('builtins', 'tuple'),
    ('collections', 'OrderedDict'),
]


@pytest.mark.parametrize('instance', [b'', b'X\1\0\0\0a\x85R'])
@pytest.mark.parametrize(('module', 'name'), ADMITTED)
def test_what_is_admitted_cannot_be_changed(path, module, name, instance):
    """Or a file could leave something behind for the next."""
    path.write_bytes(
        f'\x80\2c{module}\n{name}\n'.encode('latin1')
        + instance
        + b'N}X\7\0\0\0__doc__K\1s\x86b.'
    )
    with pytest.raises(UsageError, match=r'a\.pdparams '):
        read_paddle(path)
    content = dict(a=np.ones(2, '>f4'), b=np.float32(1))
    for protocol in (2, 4):
        found = read_paddle(write(path, OrderedDict(content), protocol))
        assert found['a'].tolist() == [1, 1] and found['b'] == 1


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


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([np.ones(2)], 'a list'),
        (np.ones(2), 'a ndarray'),
        ({}, 'no array'),
        ({'a': 1.5}, "a float by the key 'a'"),
        ({'a': {'b': np.ones(2)}}, "a dict by the key 'a'"),
        ({1: np.ones(2)}, 'by the key 1'),
        ({'a': np.ones(2), SLICES: {'b': {}}}, 'slices'),
    ],
)
def test_other_contents_are_refused(path, content, message):
    with pytest.raises(UsageError, match=message):
        read_paddle(write(path, content))


def test_other_files_are_refused(path):
    torch.save(dict(a=torch.ones(2)), path)
    with pytest.raises(UsageError, match="b'PK"):
        read_paddle(path)
    with pytest.raises(UsageError, match=r'no\.pdparams'):
        read_paddle(path.with_name('no.pdparams'))


# Weights.


def build(classes=80, bins=8, version=1, backbone='ESNet'):
    """Our PicoDet S."""
    v2 = 'V2' if version == 2 else ''
    cfgs = dict(
        backbone=dict(type=backbone, arch='0.75x'),
        neck=dict(
            type='LCPAN' if v2 else 'CSPPAN',
            in_channels=PICODET.WIDTHS,
            out_channels=96,
        ),
        bbox_head=dict(
            type=f'PicoHead{v2}',
            num_classes=classes,
            in_channels=96,
            reg_max=bins - 1,
        ),
    )
    return nn.ModuleDict(
        {
            name: MODELS.build(
                dict(cfg, type=f'anchorformer_mm.{cfg["type"]}')
            )
            for name, cfg in cfgs.items()
        }
    )


@pytest.fixture(scope='module')
def v1():
    return PICODET.draw()[0]


@pytest.fixture(scope='module')
def v2():
    return PICODET.draw(version=2)[0]


@pytest.mark.parametrize(
    ('version', 'classes', 'bins'),
    [(1, 80, 8), (1, 5, 17), (2, 80, 8), (2, 3, 5)],
)
def test_a_whole_model_computes_the_same(version, classes, bins):
    arrays, expected = PICODET.draw(classes, bins, version)
    backbone = 'LCNet' if version == 2 else 'ESNet'
    model = build(classes, bins, version, backbone)
    state, _ = convert_paddle(arrays, model)
    model.load_state_dict(state, strict=True)
    model = model.double().eval()
    with torch.no_grad():
        outs = model['bbox_head'](
            model['neck'](model['backbone'](PICODET.IMAGE))
        )
    for level in range(4):
        torch.testing.assert_close(
            outs[1][level], expected[1][level], atol=1e-10, rtol=1e-10
        )
        # Scores of v2 are 32-bit.
        score, tol = outs[0][level], 1e-10 if version == 1 else 1e-6
        torch.testing.assert_close(
            score.double(), expected[0][level], atol=tol, rtol=tol
        )
    assert len({tuple(x.shape) for x in expected[0]}) == 4
    assert all(x.std() > 0.01 for x in (*expected[0], *expected[1]))
    torch.testing.assert_close(
        model['bbox_head'].integral.project,
        1.000123 * torch.arange(bins).double(),
        atol=0,
        rtol=1e-6,
    )


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_a_backbone_computes_the_same(version, prefix):
    arrays = PICODET.Weights(seed=1)
    name, rendering = (
        ('ESNet', PICODET.Paddle.esnet)
        if version == 1
        else ('LCNet', PICODET.Paddle.lcnet)
    )
    expected = rendering(PICODET.Paddle(arrays), prefix, PICODET.IMAGE)
    tail = {
        'last_conv.weight': np.ones((8, 384, 1, 1), np.float32),
        'fc.weight': np.ones((8, 5), np.float32),
        'fc.bias': np.ones(5, np.float32),
    }
    other = {f'head.{k}' if prefix else k: v for k, v in tail.items()}
    model = build(version=version, backbone=name)
    state, keys = convert_paddle({**other, **arrays}, model, True)
    assert [k.key for k in keys if not k.targets] == [*other]
    prefixed = ('backbone.',)
    assert all(name.startswith(prefixed) for name in state)
    result = model.load_state_dict(state, strict=False)
    assert result.unexpected_keys == []
    assert not any(n.startswith(prefixed) for n in result.missing_keys)
    backbone = model['backbone'].double().eval()
    for ours, theirs in zip(backbone(PICODET.IMAGE), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def test_every_key_is_reported_once(v1):
    _, keys = convert_paddle(v1, build())
    assert [key.key for key in keys] == [*v1]
    left = [key.key for key in keys if key.action == 'left']
    assert left == [f'head.p{level}_feat.scale_reg' for level in range(3, 7)]
    by_key = {key.key: key for key in keys}
    key = by_key['backbone.3_2._se.conv2.bias']
    assert (key.action, key.part, key.shape) == ('renamed', 'backbone', (120,))
    assert key.targets == ('backbone.stages.1.1.se.3.bias',)
    assert by_key['head.head_cls2.bias'].targets == (
        'bbox_head.conv_cls.2.bias',
        'bbox_head.conv_reg.2.bias',
    )
    targets = [name for key in keys for name in key.targets]
    assert len(set(targets)) == len(targets)


def test_published_sizes(v1):
    """As the original prints them, without running statistics."""
    unlearned = ('_mean', '_variance', 'project', '_reg')
    sizes = [
        sum(
            array.size
            for name, array in v1.items()
            if name.startswith(part) and not name.endswith(unlearned)
        )
        for part in ('backbone.', 'neck.', 'head.')
    ]
    assert sizes == [603_659, 249_600, 139_456]


def test_counters_are_zero_and_the_model_is_not_changed(v1):
    model = build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state, _ = convert_paddle(v1, model)
    counters = [v for n, v in state.items() if n.endswith('_tracked')]
    assert len(counters) == sum('_mean' in key for key in v1)
    assert not any(counters)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_last_stage_of_an_anchor_esnet_is_left(v1):
    model = build(backbone='AnchorESNet')
    state, keys = convert_paddle(v1, model, backbone_only=True)
    names = [n for n in model.state_dict() if n.startswith('backbone.')]
    drawn = [n for n in names if n.startswith('backbone.stages.2.1.')]
    assert drawn and [*state] == [n for n in names if n not in drawn]
    left = [k.key for k in keys if k.part == 'backbone' and not k.targets]
    assert {key.split('.')[1] for key in left} == {'4_2', '4_3'}
    # Neck and head fit as they are.
    state, _ = convert_paddle(v1, model)
    names = [n for n in model.state_dict() if n not in drawn]
    assert [*state] == names


def test_what_a_file_holds_twice_must_agree(v2):
    twice = {
        re.sub(r'head_(cls|reg)', r'head_\1_list.', key): array.copy()
        for key, array in v2.items()
        if key.startswith('head.head_')
    }
    model = build(version=2, backbone='LCNet')
    _, keys = convert_paddle({**twice, **v2}, model)
    left = {k.key: k.note for k in keys if 'list' in k.note}
    assert len(left) == 16
    assert 'head.head_reg_list.3.bias' in left['head.head_reg3.bias']
    twice['head.head_cls_list.1.bias'][2] += 1
    names = r'head_cls1\.bias .*head_cls_list\.1\.bias .*conv_cls\.1\.bias'
    with pytest.raises(UsageError, match=names):
        convert_paddle({**twice, **v2}, model)


def zeros(*shape):
    return np.zeros(shape, np.float32)


PROJECT = 'head.distribution_project.project'


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        (
            'backbone._conv1._conv.weight',
            zeros(24, 3, 5, 5),
            r'\(24, 3, 5, 5\).*backbone\.stem\.0\.conv.*\(24, 3, 3, 3\)$',
        ),
        ('backbone.2_1._conv_pw_2._conv.weight', None, r'branch2\.0\.'),
        ('backbone._conv1._conv.weight', None, r'backbone\.stem\.0\.'),
        ('backbone.2_1._se.conv1.bias', np.zeros(11, int), 'int64'),
        ('head.head_cls3.bias', None, r'bbox_head\.conv_cls\.3\.bias'),
        ('teacher.weight', zeros(), r'teacher\.weight'),
        (
            'head.conv_feat.reg_conv_dw0.0.conv.weight',
            zeros(),
            'share_cls_reg',
        ),
        (PROJECT, None, 'reg_max'),
        (PROJECT, zeros(8), 'must be near 0, 1, 2'),
        (PROJECT, zeros(17), r'\(17,\).*\(8,\); 8 more'),
    ],
)
def test_a_detector_that_does_not_fit_is_refused(v1, key, value, message):
    changed = {k: v for k, v in {**v1, key: value}.items() if v is not None}
    with pytest.raises(UsageError, match=message):
        convert_paddle(changed, build())
    if key.startswith('backbone.'):
        with pytest.raises(UsageError, match=message):
            convert_paddle(changed, build(), backbone_only=True)


@pytest.mark.parametrize('version', [1, 2])
def test_of_other_classes_everything_else_is_taken(v1, v2, version):
    arrays, backbone = (v1, 'ESNet') if version == 1 else (v2, 'LCNet')
    model = build(20, version=version, backbone=backbone)
    state, keys = convert_paddle(arrays, model)
    absent = {name for name in model.state_dict() if name not in state}
    assert absent == {
        f'bbox_head.conv_cls.{i}.{name}'
        for i in range(4)
        for name in ('weight', 'bias')
    }
    noted = {key.key for key in keys if 'other classes' in key.note}
    assert noted == {
        f'head.head_cls{i}.{name}'
        for i in range(4)
        for name in ('weight', 'bias')
    }
    same = build(80, version=version, backbone=backbone)
    whole, _ = convert_paddle(arrays, same)
    for name, value in state.items():
        assert torch.equal(value, whole[name]), name


def test_a_shufflenet_is_no_esnet(v1):
    ungated = {key: a for key, a in v1.items() if '._se.' not in key}
    with pytest.raises(UsageError, match='ShuffleNetV2, not ESNet'):
        convert_paddle(ungated, build())


def test_a_state_inside_another_is_refused_with_advice(path):
    with pytest.raises(UsageError, match=r"\['model'\], 'weights.pdparams'\)"):
        read_paddle(write(path, dict(model=dict(a=np.ones(2)), epoch=1)))


def test_another_kind_is_named(v1, v2):
    headless = {k: v for k, v in v1.items() if not k.startswith('head.')}
    bare, clas = {'fc.bias': zeros()}, {'blocks.0.dw_1.conv.weight': zeros()}
    other = nn.ModuleDict(dict(backbone=nn.Conv2d(3, 8, 1)))
    lcnet = build(version=2, backbone='LCNet')
    for arrays, model, alone, message in (
        (v1, lcnet, False, 'backbone .*ESNet, not LCNet'),
        (v2, build(), False, 'backbone .*LCNet, not ESNet'),
        (v1, build(version=2), False, 'neck .*CSPPAN, not LCPAN'),
        (headless, build(), False, 'no head of a PicoDet'),
        (bare, build(), False, r'--backbone-only.*fc\.bias$'),
        (bare, build(), True, 'no backbone of a PicoDet'),
        (clas, build(), True, 'of PaddleClas'),
        (v1, other, True, 'Conv2d'),
    ):
        with pytest.raises(UsageError, match=message):
            convert_paddle(arrays, model, backbone_only=alone)
