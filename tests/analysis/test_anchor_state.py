"""Figures of anchors, and layers without what anchors contribute."""

import numpy as np
import pytest
import torch
from torch import nn

from anchorformer_mm.analysis.anchor_state import (
    anchor_figures,
    anchor_layers,
    are_uniform,
    tell_tokens_apart,
    watch_weights,
    zero_anchors,
    zero_output,
)
from anchorformer_mm.models.backbones.anchor_levit import MapAnchorAttention
from anchorformer_mm.models.layers import (
    AnchorAttention,
    QueryAnchorAttention,
    SelfAttention,
)

MAP = dict(
    key_dims=4,
    num_heads=2,
    map_size=(3, 4),
    attn_ratio=2,
    num_anchors=5,
    share_anchors=False,
    anchor_std=1.0,
    act_cfg=dict(type='ReLU'),
)
# Layer of 8 channels, and what it is given: 12 tokens, on a map of 3 x 4.
LAYERS = dict(
    learned=lambda: AnchorAttention(8, 2, 5, anchor_std=1.0),
    own=lambda: AnchorAttention(
        8, 2, 5, anchor_std=1.0, share_anchors=False, dwc_v=True
    ),
    folded=lambda: AnchorAttention(
        8, 2, 5, anchor_std=1.0, order='folded', qkv_bias=True
    ),
    standardized=lambda: AnchorAttention(8, 2, 5, logits='standardized'),
    untied=lambda: AnchorAttention(8, 2, 5, logits='standardized', tied=False),
    query=lambda: QueryAnchorAttention(8, 2, 5, select='norm', qkv_bias=True),
    map=lambda: MapAnchorAttention(8, 8, **MAP),
    halving=lambda: MapAnchorAttention(8, 8, stride=2, **MAP),
)


def make(name):
    """Layer with distinct anchors, and arguments of its forward."""
    layer = LAYERS[name]()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=1.0)
    x = torch.rand(3, 3, 4, 8)
    if name in ('map', 'halving'):
        return layer, (x,)
    return layer, (x.flatten(1, 2), (3, 4))


def run(layer, args):
    """Weights that the watched layer had, and its output."""
    seen = []
    with torch.no_grad(), watch_weights(layer, lambda w, *_: seen.append(w)):
        out = layer(*args)
    (weights,) = seen
    return weights, out


@pytest.mark.parametrize('name', LAYERS)
def test_figures_are_those_of_plain_formulas(name):
    layer, args = make(name)
    layer, args = layer.double(), (args[0].double(), *args[1:])
    (logits, read, gather), _ = run(layer, args)
    found = anchor_figures(logits, read, gather)
    s = logits.numpy()
    a = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    g = a / a.sum(2, keepdims=True)
    if name == 'untied':
        # By logits of its own; its weights are those of the layer's tests.
        g = gather.numpy()
    b, h, n, m = s.shape
    assert (b, h, n, m) == (3, 2, 12, 5)
    for head in range(h):
        entropy, spread, gathered, deviation = [], [], [], []
        for image in range(b):
            rows, columns = a[image, head], g[image, head].T
            entropy += [-sum(r * np.log(r)) / np.log(m) for r in rows]
            spread += [abs(r - rows.mean(0)).sum() / 2 for r in rows]
            gathered += [abs(c - columns.mean(0)).sum() / 2 for c in columns]
            deviation += list(s[image, head].std(0))
        mass = a[:, head].sum((0, 1)) / (b * n)
        expected = dict(
            entropy=np.mean(entropy),
            spread=np.mean(spread) / (1 - 1 / m),
            gather_spread=np.mean(gathered) / (1 - 1 / m),
            dead=np.mean(mass < 0.1 / m),
            deviation=np.mean(deviation),
        )
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].dtype == torch.float64
            assert found[key][head].item() == pytest.approx(value, rel=1e-9)


def figures_of(read, gather=None):
    """Means over heads, of weights (n, m)."""
    read = read[None, None]
    if gather is None:
        gather = read / read.sum(-2, keepdim=True).clamp(min=1e-9)
    found = anchor_figures(read.clamp(min=1e-9).log(), read, gather)
    return {name: value.mean().item() for name, value in found.items()}


UNIFORM = torch.full((12, 4), 0.25)
SAME = torch.eye(4)[[2] * 12]
SPREAD = torch.eye(4)[[i % 4 for i in range(12)]]


@pytest.mark.parametrize(
    ('read', 'entropy', 'spread', 'dead', 'alive', 'uniform'),
    [
        (UNIFORM, 1, 0, 0, False, True),
        (SAME, 0, 0, 0.75, False, False),
        (SPREAD, 0, 1, 0, True, False),
        (UNIFORM / 2 + SPREAD / 2, None, 0.5, 0, True, True),
        # A single token, or a single anchor, has nothing to tell apart.
        (SPREAD[:1], 0, 0, 0.75, False, False),
        (torch.ones(12, 1), 1, 0, 0, False, True),
    ],
)
def test_states_are_told_apart(read, entropy, spread, dead, alive, uniform):
    found = figures_of(read)
    if entropy is not None:
        assert found['entropy'] == pytest.approx(entropy, abs=1e-6)
    assert found['spread'] == pytest.approx(spread, abs=1e-6)
    assert found['dead'] == pytest.approx(dead)
    assert tell_tokens_apart(found) == alive
    assert are_uniform(found) == uniform


def test_anchors_that_gather_the_same_are_no_use_however_they_are_read():
    found = figures_of(SPREAD, torch.full((1, 1, 12, 4), 1 / 12))
    assert found['spread'] == pytest.approx(1)
    assert not tell_tokens_apart(found)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', LAYERS)
def test_watching_changes_nothing(name, training):
    layer, args = make(name)
    other, _ = make(name)
    other.load_state_dict(layer.state_dict())
    layer.train(training), other.train(training)
    _, out = run(layer, args)
    assert torch.equal(out, other(*args))
    assert not layer._forward_hooks
    for (key, a), b in zip(
        layer.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), key


@pytest.mark.parametrize('name', LAYERS)
def test_with_anchors_zeroed_every_token_reads_the_same(name):
    layer, args = make(name)
    layer.eval()
    before = {key: v.clone() for key, v in layer.state_dict().items()}
    _, expected = run(layer, args)
    with zero_anchors(layer):
        _, out = run(layer, args)
        with pytest.raises((RuntimeError, ValueError)):
            layer(torch.rand(2, 3, 5), *args[1:])
    if name != 'own':
        # Which convolves values besides.
        tokens = out.flatten(1, -2)
        torch.testing.assert_close(
            tokens, tokens[:, :1].expand_as(tokens), rtol=1e-4, atol=1e-5
        )
    assert not torch.allclose(out, expected, atol=1e-2)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(run(layer, args)[1], expected)


@pytest.mark.parametrize('name', [*LAYERS, 'vanilla'])
def test_without_attention_there_is_no_output(name):
    if name == 'vanilla':
        layer, args = SelfAttention(8, 2), (torch.rand(3, 12, 8),)
    else:
        layer, args = make(name)
    with zero_output(layer):
        assert not layer(*args).any()
    assert layer(*args).any()


def test_layers_have_the_names_of_the_model():
    model = nn.ModuleDict(dict(a=AnchorAttention(8, 2), b=SelfAttention(8, 2)))
    assert anchor_layers(model) == dict(a=model['a'])
