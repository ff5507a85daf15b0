"""AnchorLeViT: its attention, deployed and not, and the network."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.runner import load_state_dict
from mmpretrain.models.backbones import LeViT
from mmpretrain.registry import MODELS

from anchorformer_mm.analysis.complexity import count_complexity
from anchorformer_mm.models.backbones.anchor_levit import MapAnchorAttention

SMALL = dict(
    embed_dims=[16, 24, 32],
    num_heads=[2, 3, 2],
    depths=[1, 2, 1],
    key_dims=[4, 8, 4],
)


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


def make_layer(in_dims=24, map_size=(4, 6), **kwargs):
    sizes = dict(out_dims=12, key_dims=4, num_heads=2, attn_ratio=2)
    anchors = dict(num_anchors=3, share_anchors=True, anchor_std=1.0)
    cfg = dict(map_size=map_size, act_cfg=dict(type='HSwish'))
    return random(
        MapAnchorAttention(in_dims, **cfg | sizes | anchors | kwargs)
    )


def build(arch=SMALL, **kwargs):
    kwargs = dict(arch=arch, img_size=64, num_anchors=5) | kwargs
    return MODELS.build(dict(type='anchorformer_mm.AnchorLeViT', **kwargs))


def linear_norm(layer, x):
    """Linear layer and norm with running statistics, written out."""
    x, bn = x @ layer.linear.weight.T, layer.bn
    x = (x - bn.running_mean) / (bn.running_var + bn.eps).sqrt()
    return x * bn.weight + bn.bias


def paper_attention(layer, x, heads, d, d_v, stride):
    """Equations 4 and 6 to 12, head by head, for a map (B, H, W, C).

    With anchors of their own for gathering, and standardized products, too.
    """
    b, height, width, _ = x.shape
    kv = linear_norm(layer.kv, x.reshape(b, height * width, -1))
    places = [(i, j) for i in range(height) for j in range(width)]
    read = [
        t for t, (i, j) in enumerate(places) if i % stride == j % stride == 0
    ]
    outs = []
    for h in range(heads):
        start = h * (d + d_v)
        k = kv[..., start : start + d]
        v = kv[..., start + d : start + d + d_v]
        u = layer.anchors[h if len(layer.anchors) > 1 else 0]
        rows, columns = layer.attention_biases_h, layer.attention_biases_w
        bias = torch.stack(
            [rows[h, :, i] + columns[h, :, j] for i, j in places]
        )
        p = k @ u.T / d**0.5
        if layer.logit_scale is not None:
            std = (p.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
            p = (p - p.mean(1, keepdim=True)) / std * layer.logit_scale[h]
        p = (p + bias).exp()
        gather = p
        if not layer.tied:
            gather, p = p.chunk(2, dim=2)
        a = p / p.sum(2, keepdim=True)
        gather = a if layer.tied else gather
        delta = torch.diag_embed(gather.sum(1))
        z = torch.linalg.inv(delta) @ gather.transpose(1, 2) @ v
        outs.append((a @ z)[:, read])
    out = linear_norm(layer.proj[1], F.hardswish(torch.cat(outs, dim=-1)))
    return out.reshape(b, -(-height // stride), -(-width // stride), -1)


@pytest.mark.smoke
@pytest.mark.parametrize('share_anchors', [True, False])
@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('size', [(4, 6), (5, 1)])
@pytest.mark.parametrize('tied, logit_scale', [(True, None), (False, 2.0)])
def test_attention_equals_the_equations(
    share_anchors, stride, size, tied, logit_scale
):
    layer = make_layer(
        map_size=size,
        key_dims=3,
        attn_ratio=4,
        share_anchors=share_anchors,
        stride=stride,
        tied=tied,
        logit_scale=logit_scale,
    ).double()
    x = torch.randn(2, *size, 24, dtype=torch.float64, requires_grad=True)
    ours = layer(x)
    reference = paper_attention(layer, x, heads=2, d=3, d_v=12, stride=stride)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-10)
    weight = torch.randn_like(ours)
    grads = [
        torch.autograd.grad((out * weight).sum(), (x, *layer.parameters()))
        for out in (ours, reference)
    ]
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)


def test_position_bias_keeps_its_slope_on_a_larger_map():
    layer = make_layer(num_anchors=5)
    with torch.no_grad():
        layer.attention_biases_h.copy_(torch.arange(4.0))
        layer.attention_biases_w.zero_()
    rows = layer.position_bias(8, 3).reshape(2, 8, 3, 5)
    # Centres of rows half as high; constant beyond the outer ones.
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    expected = expected.view(1, 8, 1, 1).expand_as(rows)
    torch.testing.assert_close(rows, expected)


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
    new=st.fixed_dictionaries(
        dict(tied=st.booleans(), logit_scale=st.sampled_from((None, 0.5)))
    ),
    seed=st.integers(0, 10**6),
)
def test_a_fused_layer_is_the_same_function(
    batch, size, heads, key_dims, m, share, stride, new, seed
):
    torch.manual_seed(seed)
    attention = make_layer(
        num_heads=heads,
        key_dims=key_dims,
        num_anchors=m,
        share_anchors=share,
        stride=stride,
        **new,
    ).double()
    x = torch.randn(batch, *size, 24).double()
    with torch.no_grad():
        expected = attention(x)
        got = attention.fuse()(x)
    assert got.shape == expected.shape
    error = (got - expected).abs().max()
    assert error <= 1e-10 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize('wrong', [dict(num_anchors=5), dict(num_heads=3)])
def test_a_deployed_state_dict_of_other_sizes_is_refused(wrong):
    with pytest.raises(ValueError, match='attention_biases_h of shape'):
        load_state_dict(
            make_layer().fuse(), make_layer(**wrong).fuse().state_dict()
        )


def test_a_fused_layer_compiles_for_any_size_without_a_break():
    fused = make_layer(stride=2).fuse()
    compiled = torch.compile(
        fused, backend='aot_eager', fullgraph=True, dynamic=True
    )
    with torch.no_grad():
        for size in ((4, 6), (9, 7)):
            x = torch.randn(2, *size, 24)
            torch.testing.assert_close(compiled(x), fused(x))


# Parameters, and multiply-accumulates at 224 x 224, of the backbone, as it
# is trained and as it is deployed.
SIZES = {
    '128s': (6_669_624, 281_700_032, 272_443_072),
    '128': (7_948_624, 364_229_120, 354_048_512),
    '192': (9_539_388, 592_396_224, 542_537_088),
    '256': (16_746_096, 1_028_756_224, 948_129_792),
    '384': (35_171_744, 2_167_844_608, 2_005_188_608),
}


def attentions(net):
    return [m for m in net.modules() if hasattr(m, 'anchors')]


@pytest.mark.parametrize('arch', SIZES)
def test_parameters_and_macs_are_the_stated_ones(arch):
    net = build(arch, img_size=224, num_anchors=30)
    cost = count_complexity(net, (224, 224))
    net.switch_to_deploy()
    deployed = count_complexity(net, (224, 224))
    assert (cost.params, cost.macs, deployed.macs) == SIZES[arch]


def test_all_but_the_attention_starts_from_a_levit_checkpoint():
    ours = {n: t.shape for n, t in build('128s').state_dict().items()}
    levit = {n: t.shape for n, t in LeViT('128s').state_dict().items()}
    for name, shape in ours.items():
        leaf = name.split('.')[-1]
        # LeViT projects queries along with keys and values, except where it
        # halves the map, which happens outside of a residual block.
        ours_alone = leaf.startswith(('anchors', 'attention_biases'))
        if not ours_alone and '.block.kv.' not in name:
            assert levit[name] == shape, name


def test_a_checkpoint_of_another_size_has_its_tables_resized():
    source = random(build(img_size=64))
    target = build(img_size=(96, 128)).eval()
    load_state_dict(target, source.state_dict(), strict=True)
    x = torch.rand(1, 3, 96, 128)
    torch.testing.assert_close(target(x), source(x))
    assert attentions(target)[0].attention_biases_w.shape[-1] == 8
    assert attentions(source)[0].attention_biases_w.shape[-1] == 4


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize(
    ('kwargs', 'name'),
    [
        (dict(num_anchors=7), '0.0.block.anchors'),
        (dict(share_anchors=False), '0.0.block.anchors'),
        (dict(arch=SMALL | dict(num_heads=[4, 3, 2])), 'attention_biases_h'),
    ],
)
def test_a_checkpoint_of_other_anchors_or_heads_is_refused(
    kwargs, name, strict
):
    with pytest.raises(ValueError, match=name):
        load_state_dict(build(), build(**kwargs).state_dict(), strict=strict)


def test_fused_network_computes_the_same():
    net = random(build(out_indices=(0, 1, 2))).double()
    x = torch.rand(2, 3, 70, 90, dtype=torch.float64)
    with torch.no_grad():
        expected = net(x)
        net.switch_to_deploy()
        net.switch_to_deploy()
        torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-10)
        assert not any('bn' in name for name in net.state_dict())
        # Fused from the start, it takes the fused weights.
        deployed = build(out_indices=(0, 1, 2), deploy=True).double().eval()
        deployed.load_state_dict(net.state_dict())
        torch.testing.assert_close(deployed(x), expected, rtol=0, atol=1e-10)
    deployed.train().eval()


def test_options_reach_the_layers():
    net = build(
        num_anchors=(3, 4, 6), share_anchors=False, drop_path_rate=0.2,
        mlp_ratio=3, attn_ratio=1, act_cfg=dict(type='GELU'),
    )  # fmt: skip
    # The attention that enters a stage belongs to it.
    assert [tuple(a.anchors.shape[:2]) for a in attentions(net)] == [
        (2, 3), (2, 4), (3, 4), (3, 4), (6, 6), (2, 6),
    ]  # fmt: skip
    block = net.stages[0]
    assert block[0].drop_path.drop_prob == 0.2
    assert block[1].block.linear1.linear.out_features == 3 * 16
    assert block[0].block.proj[1].linear.in_features == 2 * 4
    assert isinstance(block[0].block.proj[0], torch.nn.GELU)
