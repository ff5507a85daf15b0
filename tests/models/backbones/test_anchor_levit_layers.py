import pytest
import torch
import torch.nn.functional as F

from anchorformer_mm.models.backbones.anchor_levit_layers import (
    MapAnchorAttention,
)


def attention(map_size=(4, 6), **kwargs):
    """A layer with the values that training might have given to it."""
    kwargs = (
        dict(
            in_dims=16,
            out_dims=12,
            key_dims=4,
            num_heads=2,
            attn_ratio=2,
            num_anchors=5,
            share_anchors=True,
            anchor_std=1.0,
            act_cfg=dict(type='HSwish'),
        )
        | kwargs
    )
    layer = MapAnchorAttention(map_size=map_size, **kwargs)
    for table in (layer.attention_biases_h, layer.attention_biases_w):
        torch.nn.init.normal_(table)
    for norm in (layer.kv.bn, layer.proj[1].bn):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return layer.eval()


def linear_norm(layer, x):
    """Linear layer and norm with running statistics, written out."""
    x, bn = x @ layer.linear.weight.T, layer.bn
    x = (x - bn.running_mean) / (bn.running_var + bn.eps).sqrt()
    return x * bn.weight + bn.bias


def paper_attention(layer, x, heads, d, d_v, stride):
    """Equations 4 and 6 to 12, head by head, for a map (B, H, W, C)."""
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
        p = (k @ u.T / d**0.5 + bias).exp()
        a = p / p.sum(2, keepdim=True)
        delta = torch.diag_embed(a.sum(1))
        z = torch.linalg.inv(delta) @ a.transpose(1, 2) @ v
        outs.append((a @ z)[:, read])
    out = linear_norm(layer.proj[1], F.hardswish(torch.cat(outs, dim=-1)))
    return out.reshape(b, -(-height // stride), -(-width // stride), -1)


@pytest.mark.smoke
@pytest.mark.parametrize('share_anchors', [True, False])
@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('size', [(4, 6), (5, 1)])
def test_attention_equals_the_equations(share_anchors, stride, size):
    layer = attention(
        size,
        key_dims=3,
        attn_ratio=4,
        share_anchors=share_anchors,
        stride=stride,
    ).double()
    x = torch.randn(2, *size, 16, dtype=torch.float64, requires_grad=True)
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


def test_position_bias_is_as_learned_on_a_map_of_the_training_size():
    layer = attention((4, 6))
    rows, columns = layer.attention_biases_h, layer.attention_biases_w
    bias = layer.position_bias(4, 6).reshape(2, 4, 6, 5)
    for i in range(4):
        for j in range(6):
            assert torch.equal(bias[:, i, j], rows[:, :, i] + columns[:, :, j])


def test_position_bias_keeps_its_slope_on_a_larger_map():
    layer = attention((4, 6))
    with torch.no_grad():
        layer.attention_biases_h.copy_(torch.arange(4.0))
        layer.attention_biases_w.zero_()
    rows = layer.position_bias(8, 3).reshape(2, 8, 3, 5)
    # Centres of rows half as high; constant beyond the outer ones.
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    expected = expected.view(1, 8, 1, 1).expand_as(rows)
    torch.testing.assert_close(rows, expected)


def test_position_is_seen_only_through_the_biases():
    layer = attention()
    x = torch.randn(1, 4, 6, 16)
    assert not torch.allclose(layer(x.flip(1)), layer(x).flip(1), atol=1e-3)
    for table in (layer.attention_biases_h, layer.attention_biases_w):
        torch.nn.init.zeros_(table)
    torch.testing.assert_close(layer(x.flip(1)), layer(x).flip(1))


def test_the_first_logits_are_those_of_the_anchors_alone():
    torch.manual_seed(0)
    layer = MapAnchorAttention(
        16,
        12,
        key_dims=4,
        num_heads=2,
        map_size=(4, 6),
        attn_ratio=2,
        num_anchors=50,
        share_anchors=True,
        anchor_std=0.02,
        act_cfg=dict(type='HSwish'),
    )
    assert not layer.position_bias(4, 6).any()
    assert 0.015 < layer.anchors.std() < 0.02
    assert layer.anchors.abs().max() <= 0.04
