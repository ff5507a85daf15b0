import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from anchorformer_mm.models.layers import (
    AnchorAttention,
    QueryAnchorAttention,
    anchor_aggregate,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def paper_attention(k, u, v):
    """Equations 4 and 6 to 12 to the letter; S is formed.

    k (n, d), u (m, d), v (n, d), one head; returns H (n, d) and S (n, n).
    """
    similarity = k @ u.T / math.sqrt(k.shape[1])
    p = similarity.exp() / similarity.exp().sum(1, keepdim=True)
    delta = torch.diag(p.sum(0))
    s = p @ torch.linalg.inv(delta) @ p.T
    return s @ v, s


def paper_layer(layer, x):
    """The whole layer, head by head, from its weights."""
    d = layer.embed_dims // layer.num_heads
    k, v = layer.kv(x).split(layer.embed_dims, dim=-1)
    anchors = layer.anchors_of(x)
    anchors = anchors.expand(x.shape[0], layer.num_heads, -1, -1)
    images = []
    for b in range(x.shape[0]):
        heads = []
        for i in range(layer.num_heads):
            cols = slice(i * d, (i + 1) * d)
            out, _ = paper_attention(
                k[b, :, cols], anchors[b, i], v[b, :, cols]
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
        lambda: queries(num_anchors=5),
        lambda: queries(num_anchors=5, select='norm', qkv_bias=True),
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


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 30),
    m=st.integers(1, 12),
    scale=st.floats(0.01, 8),
    seed=st.integers(0, 10**6),
)
def test_attention_through_anchors_is_a_markov_chain(n, m, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(
        n, m, generator=generator, dtype=torch.float64
    )
    s = anchor_aggregate(logits, torch.eye(n, dtype=torch.float64))
    assert (s >= 0).all()
    torch.testing.assert_close(s.sum(1), torch.ones(n).double())
    torch.testing.assert_close(s, s.T, rtol=0, atol=1e-12)
    eigenvalues = torch.linalg.eigvalsh(s)
    assert eigenvalues.min() > -1e-9
    assert eigenvalues.max() < 1 + 1e-9
    assert int((eigenvalues > 1e-9).sum()) <= min(n, m)


def test_constant_values_pass_unchanged():
    logits = torch.randn(3, 50, 7) * 5
    v = torch.full((3, 50, 4), 2.5)
    torch.testing.assert_close(anchor_aggregate(logits, v), v)


def test_one_anchor_is_the_mean_over_tokens():
    v = torch.randn(2, 9, 4, dtype=torch.float64)
    out = anchor_aggregate(torch.randn(2, 9, 1).double(), v)
    torch.testing.assert_close(out, v.mean(1, keepdim=True).expand_as(v))


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_permuting_tokens_permutes_the_output(n, seed):
    torch.manual_seed(seed)
    layer = learned(num_anchors=6)
    x = torch.randn(2, n, 12, dtype=torch.float64)
    order = torch.randperm(n)
    torch.testing.assert_close(
        layer(x[:, order]), layer(x)[:, order], rtol=0, atol=1e-12
    )


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


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_follows_float32(dtype):
    torch.manual_seed(0)
    layer = AnchorAttention(32, 4, 6, anchor_std=1.0)
    x = torch.randn(2, 50, 32)
    with torch.autocast('cpu', dtype=dtype):
        out = layer(x)
    assert out.dtype == dtype
    error = (out.float() - layer(x)).abs().max()
    assert error <= 16 * torch.finfo(dtype).eps


class LargestTensor(TorchDispatchMode):
    """Remember the element count of the largest result of any operator."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.numel())
        return out


@pytest.mark.parametrize('layer', [AnchorAttention, QueryAnchorAttention])
@pytest.mark.parametrize(('order', 'elements'), [('paper', 2), ('folded', 1)])
def test_no_operator_makes_more_than_a_linear_number_of_elements(
    layer, order, elements
):
    layer = layer(16, 2, num_anchors=8, order=order)
    largest = []
    for n in (512, 1024, 2048):
        x = torch.randn(1, n, 16, requires_grad=True)
        with LargestTensor() as mode:
            layer(x).sum().backward()
        largest.append(mode.numel)
    # Forward and backward, nothing is larger than keys and values together
    # or, folded, than the tokens.
    assert largest == [elements * 16 * n for n in (512, 1024, 2048)]


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    layer = AnchorAttention(12, 3, 4, attn_drop=0.5, proj_drop=0.5)
    x = torch.randn(1, 9, 12)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_parameters_are_those_of_the_release():
    # 2 D^2 keys and values, D^2 + D output, m anchors of d channels.
    count = sum(p.numel() for p in AnchorAttention(192, 3, 30).parameters())
    assert count == 3 * 192**2 + 192 + 30 * 64
    layer = AnchorAttention(192, 3, 30, share_anchors=False, qkv_bias=True)
    count = sum(p.numel() for p in layer.parameters())
    assert count == 3 * 192**2 + 3 * 192 + 30 * 192


def test_anchors_of_the_queries_do_not_depend_on_the_batch():
    layer = queries(num_anchors=4, select='norm')
    x = torch.randn(3, 20, 12, dtype=torch.float64)
    one_by_one = torch.cat([layer(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(layer(x), one_by_one, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(num_anchors=0), r'num_anchors must be an int >= 1, got 0'),
        (dict(num_heads=0), r'num_heads must be an int >= 1, got 0'),
        (dict(num_heads=5), r'embed_dims=12, num_heads=5'),
        (dict(attn_drop=1.0), r'attn_drop must be in \[0, 1\), got 1.0'),
        (dict(anchor_std=0.0), r'anchor_std must be a number > 0, got 0.0'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AnchorAttention(**(dict(embed_dims=12, num_heads=3) | kwargs))


def test_unknown_selection_is_named():
    with pytest.raises(ValueError, match="'stride' or 'norm', got 'kmeans'"):
        QueryAnchorAttention(12, 3, select='kmeans')


def test_compiled_layer_equals_eager():
    layer = AnchorAttention(12, 3, 4)
    compiled = torch.compile(layer, backend='aot_eager')
    for n in (9, 20):
        x = torch.randn(2, n, 12)
        torch.testing.assert_close(compiled(x), layer(x))


@settings(deadline=None, max_examples=20)
@given(
    index=st.lists(st.integers(0, 19), min_size=1, max_size=25),
    seed=st.integers(0, 10**6),
)
def test_tokens_that_read_get_their_rows_of_the_whole_result(index, seed):
    torch.manual_seed(seed)
    logits, v = torch.randn(2, 3, 20, 5).double(), torch.randn(2, 3, 20, 4)
    v, index = v.double(), torch.tensor(index)
    rows = anchor_aggregate(logits, v, read_index=index)
    whole = anchor_aggregate(logits, v)
    torch.testing.assert_close(rows, whole[..., index, :], rtol=0, atol=1e-14)
