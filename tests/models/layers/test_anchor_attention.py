"""Anchor attention: equations, both orders, and the fused form."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from anchorformer_mm.models.layers import (
    AnchorAttention,
    FusedAnchorAttention,
    QueryAnchorAttention,
    anchor_aggregate,
)
from anchorformer_mm.models.layers.anchor_attention import (
    EPS,
    folded_macs,
    paper_macs,
)

STANDARDIZED = dict(logits='standardized', logit_scale=1.5)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def similarities(k, u, factor):
    """Equation 4's, (n, m); standardized over tokens if there is a factor."""
    s = k @ u.T / math.sqrt(k.shape[1])
    if factor is None:
        return s
    deviation = ((s - s.mean(0)).square().mean(0) + EPS).sqrt()
    return factor * (s - s.mean(0)) / deviation


def paper_attention(k, u, v, factor=None, gather=None):
    """Equations 4 and 6 to 12 to the letter; S is formed.

    k (n, d), u (m, d), v (n, d), one head; returns H (n, d) and S (n, n).
    With ``gather`` (m, d), anchors of their own, in place of the chain's
    second half.
    """
    p = similarities(k, u, factor).exp()
    p = p / p.sum(1, keepdim=True)
    if gather is None:
        s = p @ torch.linalg.inv(torch.diag(p.sum(0))) @ p.T
    else:
        g = similarities(k, gather, factor).exp()
        s = p @ (g / g.sum(0)).T
    return s @ v, s


def paper_layer(layer, x):
    """The whole layer, head by head, from its weights."""
    d = layer.embed_dims // layer.num_heads
    k, v = layer.kv(x).split(layer.embed_dims, dim=-1)
    anchors = layer.anchors_of(x)
    anchors = anchors.expand(x.shape[0], layer.num_heads, -1, -1)
    gather, factors = anchors, [None] * layer.num_heads
    if layer.logit_scale is not None:
        factors = layer.logit_scale.flatten()
    if not layer.tied:
        gather, anchors = anchors.chunk(2, dim=2)
    images = []
    for b in range(x.shape[0]):
        heads = []
        for i in range(layer.num_heads):
            cols = slice(i * d, (i + 1) * d)
            out, _ = paper_attention(
                k[b, :, cols],
                anchors[b, i],
                v[b, :, cols],
                factors[i],
                None if layer.tied else gather[b, i],
            )
            heads.append(out)
        images.append(torch.cat(heads, dim=-1))
    return layer.proj(torch.stack(images))


def learned(**kwargs):
    return AnchorAttention(
        **(dict(embed_dims=12, num_heads=3, anchor_std=1.0) | kwargs)
    ).double()


def queries(**kwargs):
    return QueryAnchorAttention(
        **(dict(embed_dims=12, num_heads=3) | kwargs)
    ).double()


@pytest.mark.smoke
@pytest.mark.parametrize(
    'layer',
    [
        lambda: learned(num_anchors=5),
        lambda: learned(num_anchors=5, share_anchors=False),
        lambda: learned(num_anchors=5, qkv_bias=True),
        lambda: learned(num_anchors=1),
        lambda: learned(num_anchors=40),
        lambda: learned(num_anchors=5, **STANDARDIZED),
        lambda: learned(num_anchors=5, tied=False, qkv_bias=True),
        lambda: learned(num_anchors=5, tied=False, **STANDARDIZED),
        lambda: learned(
            num_anchors=5, tied=False, share_anchors=False, **STANDARDIZED
        ),
        lambda: queries(num_anchors=5),
        lambda: queries(num_anchors=5, select='norm', qkv_bias=True),
        lambda: queries(num_anchors=5, **STANDARDIZED),
        lambda: queries(num_anchors=40),
    ],
)
@pytest.mark.parametrize('n', [1, 17])
@pytest.mark.parametrize('order', ['paper', 'folded'])
def test_forward_and_gradients_equal_the_equations(layer, n, order):
    torch.manual_seed(0)
    layer = layer()
    layer.order = order
    x = torch.randn(2, n, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, n, 12, dtype=torch.float64)
    inputs = (x, *layer.parameters())
    ours, reference = layer(x), paper_layer(layer, x)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)
    grads = [
        torch.autograd.grad((out * weight).sum(), inputs)
        for out in (ours, reference)
    ]
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def with_gradients(logits, v):
    logits, v = (t.clone().requires_grad_() for t in (logits, v))
    out = anchor_aggregate(logits, v)
    out.float().square().mean().backward()
    return out.detach(), logits.grad, v.grad


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('gap', [110, 1e4])
def test_a_dead_anchor_leaves_output_and_gradient_finite(dtype, gap):
    logits = torch.randn(49, 6)
    logits[:, 2] -= gap
    v = torch.randn(49, 8)
    for t in with_gradients(logits.to(dtype), v.to(dtype)):
        assert t.dtype == dtype
        assert t.isfinite().all()
    # The dead anchor gives nothing: the layer equals one without it.
    live = anchor_aggregate(logits[:, [0, 1, 3, 4, 5]].double(), v.double())
    out = anchor_aggregate(logits.to(dtype), v.to(dtype)).double()
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(out, live, rtol=0, atol=tolerance)


@pytest.mark.parametrize('dtype', DTYPES)
def test_an_anchor_may_collect_all_of_66600_tokens(dtype):
    n = 66_600
    logits = torch.zeros(n, 30)
    logits[:, 4] = 200
    v = 40 + torch.randn(n, 8)
    out, *grads = with_gradients(logits.to(dtype), v.to(dtype))
    assert all(t.isfinite().all() for t in (out, *grads))
    mean = v.to(dtype).double().mean(0).expand(n, -1)
    # Sums of n terms in fp32 are good to about sqrt(n) roundings.
    rtol = max(4 * torch.finfo(dtype).eps, n**0.5 * 2**-23)
    torch.testing.assert_close(out.double(), mean, rtol=rtol, atol=0)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('scale', [1, 1e2, 1e4])
def test_low_precision_stays_within_its_rounding(dtype, scale):
    torch.manual_seed(0)
    logits = (torch.rand(196, 30) * 2 - 1) * scale
    v = torch.randn(196, 16)
    # The reference sees the rounded logits: their rounding is not ours.
    logits, v = logits.to(dtype), v.to(dtype)
    out, *grads = with_gradients(logits, v)
    assert all(t.isfinite().all() for t in (out, *grads))
    reference = anchor_aggregate(logits.double(), v.double())
    error = (out.double() - reference).abs().max()
    assert error <= 8 * torch.finfo(dtype).eps * v.abs().max()


@pytest.mark.parametrize('layer', [AnchorAttention, QueryAnchorAttention])
@pytest.mark.parametrize(('order', 'elements'), [('paper', 2), ('folded', 1)])
def test_no_operator_makes_more_than_a_linear_number_of_elements(
    layer, order, elements, largest_tensor
):
    layer = layer(16, 2, num_anchors=8, order=order)
    largest = []
    for n in (512, 1024, 2048):
        x = torch.randn(1, n, 16, requires_grad=True)
        with largest_tensor() as mode:
            layer(x).sum().backward()
        largest.append(mode.numel)
    # Forward and backward, nothing is larger than keys and values together
    # or, folded, than the tokens.
    assert largest == [elements * 16 * n for n in (512, 1024, 2048)]


@pytest.mark.parametrize(
    ('order', 'macs'), [('paper', paper_macs), ('folded', folded_macs)]
)
@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('n', [7, 196])
def test_the_closed_form_is_what_torch_counts(order, macs, tied, n):
    layer = AnchorAttention(
        64, 2, 9, order=order, tied=tied, logits='standardized'
    )
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(1, n, 64))

    assert counter.get_total_flops() == 2 * macs(n, 64, 2, 9, tied=tied)


@pytest.mark.parametrize('dynamic', [False, True])
@pytest.mark.parametrize('kwargs', [{}, dict(tied=False, **STANDARDIZED)])
def test_the_folded_order_compiles_without_a_break(dynamic, kwargs):
    layer = AnchorAttention(64, 2, 4, **kwargs)
    compiled = torch.compile(
        layer, backend='aot_eager', fullgraph=True, dynamic=dynamic
    )
    for n in (90, 200):
        x = torch.randn(2, n, 64)
        assert layer.folds(n)
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.smoke
@pytest.mark.parametrize('order', ['auto', 'folded'])
@pytest.mark.parametrize('qkv_bias', [False, True])
@pytest.mark.parametrize(
    'kwargs',
    [
        dict(share_anchors=False),
        dict(tied=False),
        dict(logits='standardized'),
        dict(tied=False, share_anchors=False, logits='standardized'),
    ],
)
def test_a_fused_layer_is_the_same_function(order, qkv_bias, kwargs):
    torch.manual_seed(0)
    layer = AnchorAttention(
        32,
        2,
        5,
        order=order,
        qkv_bias=qkv_bias,
        anchor_std=1.0,
        attn_drop=0.5,
        **kwargs,
    ).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    layer.eval()
    fused = layer.fuse()

    assert isinstance(fused, FusedAnchorAttention)
    for batch, n in ((1, 1), (3, 50)):
        x = torch.randn(batch, n, 32).double()
        expected = layer(x)
        size = expected.abs().max()
        assert (fused(x) - expected).abs().max() <= 1e-12 * size


@pytest.mark.parametrize(
    'kwargs', [dict(dwc_v=True), dict(num_anchors=64), dict(order='paper')]
)
def test_a_layer_that_is_better_off_as_it_is_stays(kwargs):
    layer = AnchorAttention(32, 2, **kwargs)

    assert layer.fuse() is layer


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('dtype', DTYPES)
def test_standardized_logits_are_finite_in_every_dtype(tied, dtype):
    layer = AnchorAttention(
        32, 2, 5, tied=tied, anchor_std=50.0, logits='standardized'
    ).to(dtype)
    for scale in (1, 100):
        for n in (1, 49):
            x = (scale * torch.randn(1, n, 32)).to(dtype).requires_grad_()
            for image in (x, x[:, :1].expand(-1, n, -1)):
                layer(image).float().square().mean().backward()
                assert layer(image).isfinite().all()
                assert x.grad.isfinite().all()


@pytest.mark.parametrize('share_anchors', [True, False])
@pytest.mark.parametrize('std', [0.02, 0.3])
def test_logits_start_with_the_deviation_asked_for(share_anchors, std):
    layer = AnchorAttention(
        96, 3, 8, logit_std=0.7, tied=False, share_anchors=share_anchors
    )
    torch.nn.init.normal_(layer.kv.weight, std=std)
    layer.init_weights()
    x = torch.randn(1, 20_000, 96)
    k = layer.split_heads(layer.kv(x)[..., :96])
    # Shared anchors meet each head's keys: equal in the mean of the heads.
    variance = layer.logits_of(x, k).var(2).mean(1)
    assert variance.shape == (1, 16)
    torch.testing.assert_close(
        variance.sqrt(), torch.full((1, 16), 0.7), rtol=0.03, atol=0
    )
