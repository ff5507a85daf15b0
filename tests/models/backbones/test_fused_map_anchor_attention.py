import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.runner import load_state_dict
from mmpretrain.models.backbones import LeViT
from mmpretrain.registry import MODELS
from torch.utils.flop_counter import FlopCounterMode

from anchorformer_mm.analysis.anchor_maps import collect_anchor_weights
from anchorformer_mm.analysis.complexity import count_complexity
from anchorformer_mm.models.backbones.anchor_levit_layers import (
    MapAnchorAttention,
)
from anchorformer_mm.models.backbones.fused_map_anchor_attention import (
    FusedMapAnchorAttention,
    gathering_first_pays,
)

# Multiply-accumulates at 224 x 224 of the deployed backbone.
MACS = {
    '128s': 272_443_072,
    '128': 354_048_512,
    '192': 542_537_088,
    '256': 948_129_792,
    '384': 2_005_188_608,
}


def random(net):
    """Give norms, anchors and biases the values that training might."""
    with torch.no_grad():
        for name, t in net.state_dict().items():
            if name.endswith('running_var'):
                t.uniform_(0.5, 2)
            elif name.endswith(
                ('bn.bias', 'running_mean', '_biases_h', '_biases_w')
            ):
                t.normal_()
            elif name.endswith(('bn.weight', 'anchors')):
                t.uniform_(-2, 2)
    return net.eval()


def backbone(arch, **kwargs):
    kwargs = dict(arch=arch, img_size=64) | kwargs
    return MODELS.build(dict(type='anchorformer_mm.AnchorLeViT', **kwargs))


def shallow(arch):
    """One of the five sizes, with one layer in each stage."""
    return LeViT.arch_zoo[arch] | dict(depths=[1, 1, 1])


def layer(in_dims=24, map_size=(4, 6), **kwargs):
    kwargs = (
        dict(
            out_dims=12,
            key_dims=4,
            num_heads=2,
            attn_ratio=2,
            num_anchors=3,
            share_anchors=True,
            anchor_std=1.0,
            act_cfg=dict(type='HSwish'),
        )
        | kwargs
    )
    return random(MapAnchorAttention(in_dims, map_size=map_size, **kwargs))


@pytest.mark.smoke
@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    heads=st.integers(1, 3),
    key_dims=st.integers(1, 8),
    m=st.integers(1, 12),
    share=st.booleans(),
    stride=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_a_fused_layer_is_the_same_function(
    batch, size, heads, key_dims, m, share, stride, seed
):
    torch.manual_seed(seed)
    attention = layer(
        num_heads=heads,
        key_dims=key_dims,
        num_anchors=m,
        share_anchors=share,
        stride=stride,
    ).double()
    x = torch.randn(batch, *size, 24).double()
    with torch.no_grad():
        expected = attention(x)
        got = attention.fuse()(x)
    assert got.shape == expected.shape
    error = (got - expected).abs().max()
    assert error <= 1e-10 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize('arch', LeViT.arch_zoo)
def test_a_deployed_network_is_the_same_function(arch):
    net = random(
        backbone(shallow(arch), out_indices=(0, 1, 2), anchor_std=1.0)
    ).double()
    deployed = copy.deepcopy(net)
    deployed.switch_to_deploy()
    assert not any(
        isinstance(m, MapAnchorAttention) for m in deployed.modules()
    )
    for shape in ((1, 3, 64, 64), (3, 3, 80, 208)):
        x = torch.rand(shape, dtype=torch.float64)
        with torch.no_grad():
            pairs = zip(deployed(x), net(x), strict=True)
        for got, expected in pairs:
            error = (got - expected).abs().max()
            assert error <= 1e-10 * expected.abs().max()


def closed_form(n, read, c, h, k, v, m, out_dims):
    """Of an image, in whichever order of keys and of values is cheaper."""
    logits = h * n * min(m * c, k * (c + m))
    values = h * min(m * c * (n + v), n * v * (c + m))
    return logits + values + h * read * v * (m + out_dims)


@pytest.mark.parametrize('side', [1, 4, 7, 14, 20])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize(('c', 'k'), [(128, 16), (192, 32), (384, 32)])
def test_macs_are_those_of_the_cheaper_order(side, stride, c, k):
    attention = layer(
        c, key_dims=k, attn_ratio=2 * stride, num_anchors=30, stride=stride
    )
    v, n, read = 2 * stride * k, side**2, (-(-side // stride)) ** 2
    macs = []
    for module in (attention, attention.fuse()):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(torch.randn(1, side, side, c))
        macs.append(counter.get_total_flops() / 2)
    assert macs[1] == closed_form(n, read, c, 2, k, v, 30, 12)
    assert macs[1] <= macs[0]
    if k > 30 or n > 50:
        assert macs[1] < macs[0]


@pytest.mark.parametrize('arch', MACS)
def test_macs_of_a_deployed_backbone_are_the_stated_ones(arch):
    net = backbone(arch, img_size=224, deploy=True)
    assert count_complexity(net, (224, 224)).macs == MACS[arch]


def test_the_two_choices_are_the_cheaper_ones():
    # 30 C against 16 (C + 30) and 32 (C + 30): too many anchors, and not.
    names = dict(
        layer(128, key_dims=16, num_anchors=30).fuse().named_parameters()
    )
    assert 'logit_weight' not in names
    assert names['key_weight'].shape == (2 * 16, 128)
    assert names['anchors'].shape == (1, 30, 16)
    names = dict(
        layer(128, key_dims=32, num_anchors=30).fuse().named_parameters()
    )
    assert names['logit_weight'].shape == (2 * 30, 128)
    assert not {'key_weight', 'anchors'} & names.keys()

    assert [gathering_first_pays(n, 512, 64, 30) for n in (16, 49, 196)] == [
        False,
        False,
        True,
    ]
    assert gathering_first_pays(None, 512, 64, 30)
    assert not gathering_first_pays(None, 512, 64, 100)


@pytest.mark.parametrize('num_anchors', [3, 9])
def test_fusing_leaves_the_layer_alone_and_shares_nothing(num_anchors):
    attention = layer(num_anchors=num_anchors)
    before = copy.deepcopy(attention.state_dict())
    x = torch.randn(1, 4, 6, 24)
    with torch.no_grad():
        fused = attention.fuse()
        expected = fused(x)
        torch.testing.assert_close(
            expected, attention(x), rtol=1e-4, atol=1e-5
        )
        for name, t in attention.state_dict().items():
            assert torch.equal(t, before[name]), name
            t.zero_()
        assert torch.equal(fused(x), expected)
    assert not any(p.requires_grad for p in fused.parameters())
    assert fused(x.requires_grad_()).requires_grad


@pytest.mark.parametrize('arch', ['128s', '256'])
@pytest.mark.parametrize('load', ['torch', 'mmengine'])
def test_a_deployed_state_dict_fills_a_deployed_network(arch, load):
    source = random(backbone(shallow(arch), img_size=64))
    source.switch_to_deploy()
    source.switch_to_deploy()
    target = backbone(shallow(arch), img_size=(96, 160), deploy=True).eval()
    if load == 'torch':
        target.load_state_dict(source.state_dict())
    else:
        load_state_dict(target, source.state_dict(), strict=True)
    x = torch.rand(2, 3, 96, 160)
    with torch.no_grad():
        torch.testing.assert_close(target(x), source(x))
    tables = [n for n in target.state_dict() if n.endswith('_biases_w')]
    assert target.state_dict()[tables[0]].shape[-1] == 10


@pytest.mark.parametrize('wrong', [dict(num_anchors=5), dict(num_heads=3)])
def test_a_deployed_state_dict_of_other_sizes_is_refused(wrong):
    with pytest.raises(ValueError, match='attention_biases_h of shape'):
        load_state_dict(layer().fuse(), layer(**wrong).fuse().state_dict())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('autocast', [False, True])
def test_low_precision_rounds_little_more_than_before(dtype, autocast):
    torch.manual_seed(0)
    attention = layer(64, key_dims=16, num_anchors=8)
    x = torch.randn(2, 12, 12, 64)
    with torch.no_grad():
        exact = copy.deepcopy(attention).double()(x.double())
        errors = []
        for module in (attention, attention.fuse()):
            with torch.autocast('cpu', dtype=dtype, enabled=autocast):
                if autocast:
                    out = module(x)
                else:
                    out = copy.deepcopy(module).to(dtype)(x.to(dtype))
            assert out.dtype == dtype
            errors.append((out.double() - exact).norm().item())
    assert errors[1] <= 2 * errors[0]


def test_what_anchors_collect_is_still_told():
    attention = layer(map_size=(3, 5))
    x = torch.randn(1, 4, 6, 24)
    with torch.no_grad():
        (before,), (after,) = (
            collect_anchor_weights(module, x)
            for module in (attention, attention.fuse())
        )
    assert after.grid == before.grid == (4, 6)
    torch.testing.assert_close(after.weights, before.weights)


def test_a_fused_layer_compiles_for_any_size_without_a_break():
    fused = layer(stride=2).fuse()
    compiled = torch.compile(
        fused, backend='aot_eager', fullgraph=True, dynamic=True
    )
    with torch.no_grad():
        for size in ((4, 6), (9, 7)):
            x = torch.randn(2, *size, 24)
            torch.testing.assert_close(compiled(x), fused(x))


@pytest.mark.parametrize('dynamo', [False, True])
@pytest.mark.parametrize(('num_anchors', 'stride'), [(3, 2), (9, 1)])
def test_onnxruntime_computes_the_same_at_other_sizes(
    dynamo, num_anchors, stride
):
    if dynamo:
        pytest.importorskip('onnxscript', reason='the exporter needs it')
    ort = pytest.importorskip('onnxruntime')
    fused = layer(num_anchors=num_anchors, stride=stride).fuse()
    assert isinstance(fused, FusedMapAnchorAttention)
    file = io.BytesIO()
    axes = {0: 'batch', 1: 'height', 2: 'width'}
    kwargs = (
        dict(dynamic_shapes=(axes,))
        if dynamo
        else dict(dynamic_axes=dict(x=axes))
    )
    program = torch.onnx.export(
        fused,
        (torch.randn(2, 4, 6, 24),),
        None if dynamo else file,
        input_names=['x'],
        opset_version=18 if dynamo else 17,
        dynamo=dynamo,
        **kwargs,
    )
    if dynamo:
        program.save(file)
    session = ort.InferenceSession(file.getvalue())
    for shape in ((2, 4, 6), (1, 9, 7), (3, 5, 5)):
        x = torch.randn(*shape, 24)
        (got,) = session.run(None, {'x': x.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(got), fused(x), rtol=1e-4, atol=1e-5
        )
