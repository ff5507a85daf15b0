import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.model import ExponentialMovingAverage
from torch.utils.flop_counter import FlopCounterMode

from anchorformer_mm.models.layers import (
    AnchorAttention,
    QueryAnchorAttention,
)
from anchorformer_mm.models.layers.folded_anchors import (
    folded_macs,
    folding_pays,
    paper_macs,
)

LAYERS = [AnchorAttention, QueryAnchorAttention]


def in_order(layer, order):
    other = copy.deepcopy(layer)
    other.order = order
    return other


def results(layer, x, weight):
    """Output, and the gradients of tokens and weights."""
    x = x.clone().requires_grad_()
    out = layer(x)
    wanted = (x, *layer.parameters())
    return out, *torch.autograd.grad((out * weight).sum(), wanted)


@pytest.mark.smoke
@settings(deadline=None, max_examples=25)
@given(
    layer=st.sampled_from(LAYERS),
    batch=st.integers(1, 3),
    n=st.integers(1, 40),
    heads=st.integers(1, 4),
    m=st.integers(1, 40),
    bias=st.booleans(),
    share=st.booleans(),
    scale=st.floats(0.1, 30),
    seed=st.integers(0, 10**6),
)
def test_both_orders_agree_forward_and_backward(
    layer, batch, n, heads, m, bias, share, scale, seed
):
    torch.manual_seed(seed)
    kwargs = dict(num_anchors=m, qkv_bias=bias)
    if layer is AnchorAttention:
        kwargs |= dict(share_anchors=share, anchor_std=scale)
    layer = layer(4 * heads, heads, **kwargs).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(batch, n, 4 * heads).double()
    weight = torch.randn_like(x)
    paper = results(in_order(layer, 'paper'), x, weight)
    folded = results(in_order(layer, 'folded'), x, weight)
    for got, expected in zip(folded, paper, strict=True):
        size = expected.abs().max().clamp(min=1)
        assert (got - expected).abs().max() <= 1e-10 * size


@pytest.mark.parametrize('gap', [110, 1e4])
@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.bfloat16, torch.float16]
)
def test_dead_and_greedy_anchors_leave_all_finite(dtype, gap):
    torch.manual_seed(0)
    layer = AnchorAttention(16, 2, 6, order='folded', qkv_bias=True)
    with torch.no_grad():
        # The first of six anchors of each head loses, or wins, every token.
        layer.kv.weight.mul_(0.1)
        layer.kv.bias[:16] = 1
        layer.anchors[:, 0] = -gap / 8
        layer.anchors[:, 1] = gap / 8
    layer.to(dtype)
    x = torch.randn(2, 50, 16).to(dtype)
    assert all(
        t.isfinite().all() for t in results(layer, x, torch.ones_like(x))
    )


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('autocast', [False, True])
def test_low_precision_rounds_no_worse_than_the_paper_s_order(dtype, autocast):
    torch.manual_seed(0)
    layer = AnchorAttention(64, 2, 8, anchor_std=1.0).eval()
    x = torch.randn(2, 200, 64)
    exact = in_order(layer, 'paper').double()(x.double())
    errors = {}
    for order in ('paper', 'folded'):
        other = in_order(layer, order)
        with torch.autocast('cpu', dtype=dtype, enabled=autocast):
            if not autocast:
                other, x = other.to(dtype), x.to(dtype)
            out = other(x)
        assert out.dtype == dtype
        errors[order] = (out.double() - exact).abs().max().item()
    assert errors['folded'] <= 2 * errors['paper']


@settings(deadline=None, max_examples=50)
@given(
    n=st.integers(1, 3000),
    heads=st.integers(1, 12),
    d=st.sampled_from([16, 32, 64]),
    m=st.integers(1, 100),
)
def test_auto_takes_the_cheaper_order(n, heads, d, m):
    sizes = (n, heads * d, heads, m)
    layer = AnchorAttention(heads * d, heads, m)

    assert layer.folds(n) == (folded_macs(*sizes) < paper_macs(*sizes))


@pytest.mark.parametrize(
    ('order', 'macs'), [('paper', paper_macs), ('folded', folded_macs)]
)
@pytest.mark.parametrize('n', [7, 196])
def test_the_closed_form_is_what_torch_counts(order, macs, n):
    layer = AnchorAttention(64, 2, 9, order=order)
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(1, n, 64))

    assert counter.get_total_flops() == 2 * macs(n, 64, 2, 9)


def test_sizes_that_are_symbols_are_not_compared():
    assert folding_pays(object(), 384, 6, 30)
    assert not folding_pays(object(), 384, 6, 100)


def test_the_convolution_of_values_takes_the_paper_s_order():
    assert not AnchorAttention(64, 2, 4, dwc_v=True).folds(4096)
    with pytest.raises(ValueError, match="order='folded' does not make"):
        AnchorAttention(64, 2, 4, dwc_v=True, order='folded')


def test_an_unknown_order_is_named():
    with pytest.raises(ValueError, match="'folded'.*got 'fast'"):
        AnchorAttention(64, 2, 4, order='fast')


def optimise(layer):
    layer.train()
    optimiser = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer(torch.randn(1, 9, 16)).square().sum().backward()
    optimiser.step()
    layer.eval()


def load(layer):
    other = AnchorAttention(16, 2, 4, anchor_std=1.0)
    layer.load_state_dict(other.state_dict())


def swap_an_average_in(layer):
    average = ExponentialMovingAverage(layer)
    average.update_parameters(AnchorAttention(16, 2, 4, anchor_std=1.0))
    for own, mean in zip(
        layer.parameters(), average.module.parameters(), strict=True
    ):
        own.data.copy_(mean.data)
    layer.eval()


def write_in_place(layer):
    with torch.no_grad():
        layer.kv.weight.mul_(2)


@pytest.mark.parametrize(
    'change',
    [
        optimise,
        load,
        swap_an_average_in,
        write_in_place,
        lambda layer: layer.half().float(),
        lambda layer: layer.double(),
        lambda layer: setattr(
            layer, 'anchors', torch.nn.Parameter(layer.anchors.detach() + 1)
        ),
    ],
    ids=['optimiser', 'load', 'average', 'in-place', 'half', 'double', 'new'],
)
def test_the_product_of_weights_is_remade_when_they_change(change):
    torch.manual_seed(0)
    layer = AnchorAttention(16, 2, 4, anchor_std=1.0, order='folded').eval()
    with torch.no_grad():
        layer(torch.randn(1, 9, 16))
    change(layer)
    x = torch.randn(1, 9, 16, dtype=layer.anchors.dtype)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), in_order(layer, 'paper')(x))


def test_the_product_of_weights_is_made_once():
    layer = AnchorAttention(16, 2, 4, order='folded').eval()
    x = torch.randn(1, 9, 16)
    with torch.no_grad():
        layer(x)
        with FlopCounterMode(display=False) as counter:
            layer(x)
    once = folded_macs(9, 16, 2, 4) - 4 * 16**2
    assert counter.get_total_flops() == 2 * once


def test_autocast_leaves_nothing_behind():
    layer = AnchorAttention(16, 2, 4, order='folded').eval()
    x = torch.randn(1, 9, 16)
    with torch.no_grad():
        with torch.autocast('cpu', dtype=torch.bfloat16):
            layer(x)
        assert layer(x).dtype == torch.float32
        torch.testing.assert_close(layer(x), in_order(layer, 'paper')(x))


def test_a_layer_that_ran_can_be_copied_and_saved(tmp_path):
    layer = AnchorAttention(16, 2, 4, order='folded').eval()
    x = torch.randn(1, 9, 16)
    with torch.no_grad():
        out = layer(x)
        assert torch.equal(copy.deepcopy(layer)(x), out)
    names = {'anchors', 'kv.weight', 'proj.weight', 'proj.bias'}
    assert layer.state_dict().keys() == names


@pytest.mark.parametrize('order', ['paper', 'folded'])
def test_dropout_of_the_weights_acts_in_training_only(order):
    layer = AnchorAttention(16, 2, 4, attn_drop=0.5, order=order)
    x = torch.randn(1, 9, 16)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize('dynamic', [False, True])
def test_the_folded_order_compiles_without_a_break(dynamic):
    layer = AnchorAttention(64, 2, 4)
    compiled = torch.compile(
        layer, backend='aot_eager', fullgraph=True, dynamic=dynamic
    )
    for n in (90, 200):
        x = torch.randn(2, n, 64)
        assert layer.folds(n)
        torch.testing.assert_close(compiled(x), layer(x))
