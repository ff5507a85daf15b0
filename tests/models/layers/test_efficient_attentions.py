"""Attention of linear cost by others, each against its paper's equations."""

import math
import re
import warnings
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

from anchorformer_mm.analysis.complexity import count_complexity
from anchorformer_mm.deployment.networks import SizesFollowed, make_traceable
from anchorformer_mm.models.layers import ATTENTIONS, build_attention

D, HEADS, M = 12, 3, 6
# Agents of M = 6 lie on a grid of 2 x 3.
GRID = (2, 3)
NAMES = ['agent', 'linear', 'focused', 'castling', 'paca', 'pool']
NEED_A_MAP = ['agent', 'pool']
LAYERS = [
    *((name, dict()) for name in NAMES),
    ('linear', dict(feature_map='elu', qkv_bias=True)),
    ('focused', dict(power=5)),
    ('castling', dict(threshold=1.5, qkv_bias=True)),
    ('paca', dict(qkv_bias=True)),
]
# Class tokens, height and width of the map.
MAPS = [(0, 3, 5), (1, 4, 6), (2, 1, 7), (0, 1, 1), (1, 1, 1), (1, 5, 3)]


def build(name, dims=D, heads=HEADS, std=1.0, **cfg):
    """A layer whose weights are as large as those that were trained."""
    torch.manual_seed(0)
    layer = build_attention(name, dims, heads, M, **cfg)
    for weight in layer.parameters():
        nn.init.normal_(weight, std=std)
    return layer.eval()


def tokens(extra, height, width, batch=2, dims=D):
    torch.manual_seed(1)
    return torch.randn(batch, extra + height * width, dims)


# ------------------------------------- the equations, for one image


def cells(q, extra, height, width):
    """Means of the map (rows of q) over the cells of the grid."""
    means = []
    for r in range(GRID[0]):
        for c in range(GRID[1]):
            ys = range(r * height // GRID[0], -(-(r + 1) * height // GRID[0]))
            xs = range(c * width // GRID[1], -(-(c + 1) * width // GRID[1]))
            inside = [q[extra + y * width + x] for y in ys for x in xs]
            means.append(torch.stack(inside).mean(0))
    return torch.stack(means)


def softmax(logits, dim=-1):
    return logits.exp() / logits.exp().sum(dim, keepdim=True)


def features(name, layer, x):
    """The feature map of queries or keys (n, d)."""
    if name == 'linear' and layer.feature_map == 'elu':
        return torch.where(x > 0, x + 1, x.exp())
    x = x.clamp(min=0)
    if name == 'linear':
        return x
    powers = x**layer.power
    norm, norm_p = (t.square().sum(1, True).sqrt() for t in (x, powers))
    return torch.where(norm > 0, norm / norm_p * powers, 0)


def head(name, layer, q, k, v, shape):
    """One head of one image, in (n, d), with matrices of n x n."""
    d = q.shape[1]
    weights = softmax(q @ k.T / math.sqrt(d))
    if name == 'paca':
        return weights @ v
    if name == 'agent':
        a = cells(q, *shape)
        return softmax(q @ a.T / math.sqrt(d)) @ (
            softmax(a @ k.T / math.sqrt(d)) @ v
        )
    if name == 'castling':
        norms = torch.outer(*(t.square().sum(1).sqrt() for t in (q, k)))
        u = v / 2 + (q @ k.T / norms / math.pi) @ v
        if layer.training:
            u = u + (weights * (weights > layer.threshold / len(q))) @ v
        return u / u.square().sum(1, keepdim=True).sqrt()
    weights = features(name, layer, q) @ features(name, layer, k).T
    return weights @ v / weights.sum(1, keepdim=True).clamp(min=1e-6)


def reference(name, layer, x, shape):
    extra, height, width = shape
    if name == 'pool':
        out = x.mean(0) - x
        for y in range(height):
            for z in range(width):
                near = [
                    x[extra + a * width + b]
                    for a in range(max(y - 1, 0), min(y + 2, height))
                    for b in range(max(z - 1, 0), min(z + 2, width))
                ]
                i = extra + y * width + z
                out[i] = torch.stack(near).mean(0) - x[i]
        return out
    if name == 'paca':
        z = softmax(x @ layer.assign.weight.T, 0).T @ x
        z = (z - z.mean(1, keepdim=True)) / (
            z.var(1, correction=0, keepdim=True) + layer.norm.eps
        ).sqrt()
        z = z * layer.norm.weight + layer.norm.bias
        q, (k, v) = layer.q(x), layer.kv(z).split(D, dim=-1)
    else:
        q, k, v = layer.qkv(x).split(D, dim=-1)
    d, out = D // HEADS, []
    for i in range(HEADS):
        qkv = [t[:, i * d : (i + 1) * d] for t in (q, k, v)]
        out.append(head(name, layer, *qkv, shape))
    return layer.proj(torch.cat(out, dim=-1))


@pytest.mark.parametrize('shape', MAPS)
@pytest.mark.parametrize(('name', 'cfg'), LAYERS)
def test_forward_equals_the_equations(name, cfg, shape):
    layer = build(name, std=0.5, **cfg).double()
    x = tokens(*shape).double()
    for training in (False, True):
        layer.train(training)
        found = layer(x, shape[1:])
        expected = [reference(name, layer, image, shape) for image in x]
        torch.testing.assert_close(
            found, torch.stack(expected), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize('shape', [(1, 14, 14), (0, 1, 1), (2, 3, 20)])
@pytest.mark.parametrize('dtype', [torch.float, torch.bfloat16, torch.half])
@pytest.mark.parametrize('name', NAMES)
def test_values_and_gradients_are_finite_in_half_precision(name, dtype, shape):
    layer = build(name, 192, 3).train()
    x = tokens(*shape, dims=192).requires_grad_()
    with torch.autocast('cpu', dtype, enabled=dtype != torch.float):
        out = layer(x, shape[1:])
    out.float().square().mean().backward()
    weights = [x, *layer.parameters()]
    assert all(t.isfinite().all() for t in (out, *(w.grad for w in weights)))
    plain = layer.eval().to(dtype)(x.detach().to(dtype), shape[1:])
    assert plain.dtype == dtype
    assert plain.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize('name', NAMES)
def test_images_of_a_batch_do_not_meet_and_there_may_be_none(name):
    layer = build(name)
    x = tokens(1, 4, 5, batch=3)
    out = layer(x, (4, 5))
    alone = torch.cat([layer(image[None], (4, 5)) for image in x])
    torch.testing.assert_close(out, alone, rtol=1e-5, atol=1e-4)
    assert layer(x[:0], (4, 5)).shape == (0, 21, D)


@pytest.mark.parametrize('hw_shape', [None, (4, 6)])
@pytest.mark.parametrize('name', NEED_A_MAP)
def test_a_map_that_is_missing_is_told(name, hw_shape):
    with pytest.raises(ValueError, match=r'needs the \(height, width\).*20'):
        build(name)(tokens(0, 4, 5), hw_shape)


def test_the_softmax_branch_of_castling_is_for_training_alone():
    layer, x = build('castling', threshold=1.0), tokens(0, 4, 5)
    bare = build('castling', threshold=None)
    assert layer(x).equal(bare(x))
    assert not layer.train()(x).equal(bare.train()(x))
    assert bare(x).equal(bare.eval()(x))


@pytest.mark.parametrize(
    ('m', 'grid'),
    [(1, (1, 1)), (2, (1, 2)), (10, (3, 3)), (30, (5, 6)), (49, (7, 7))],
)
def test_agents_lie_on_the_nearest_grid(m, grid):
    layer = build_attention('agent', D, HEADS, m)
    assert tuple(layer.pool.output_size) == grid


class OfMap(nn.Module):
    """A layer on the pixels of a map, behind a class token."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat((tokens[:, :1], tokens), dim=1)
        return self.layer(tokens.repeat(1, 1, D // 3), x.shape[2:])


@torch.no_grad()
@pytest.mark.parametrize('dynamic', [False, True])
@pytest.mark.parametrize('name', NAMES)
def test_onnx_computes_the_same(name, dynamic, tmp_path):
    layer, path = OfMap(build(name, std=0.5)), tmp_path / 'layer.onnx'
    x = torch.randn(2, 3, 5, 7)
    traced = OfMap(build(name, std=0.5))
    make_traceable(traced, dynamic=dynamic)
    with warnings.catch_warnings(), SizesFollowed(not dynamic):
        warnings.simplefilter('ignore')
        torch.onnx.export(
            traced, (x,), path, opset_version=17, dynamo=False,
            input_names=['x'],
            dynamic_axes={'x': {0: 'b', 2: 'h', 3: 'w'}} if dynamic else None,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(path)
    others = [torch.randn(1, 3, 9, 4), torch.randn(3, 3, 1, 2)]
    for images in (x, *others) if dynamic else (x,):
        (found,) = session.run(None, {'x': images.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(found), layer(images), rtol=1e-4, atol=1e-4
        )


N = 1 + 5 * 7  # tokens of the image below
PROJECTIONS = 4 * N * D**2
MACS = dict(
    agent=PROJECTIONS + 4 * N * M * D,
    linear=PROJECTIONS + 2 * N * (D // HEADS) * D,
    focused=PROJECTIONS + 2 * N * (D // HEADS) * D,
    castling=PROJECTIONS + 2 * N * (D // HEADS) * D,
    paca=2 * N * D**2 + 2 * M * D**2 + 4 * N * M * D,
    pool=0,
)


@pytest.mark.parametrize('name', NAMES)
def test_products_are_those_of_the_closed_form(name):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), OfMap(build(name)))
    assert count_complexity(net, (5, 7)).macs == 9 * 35 + MACS[name]


def test_an_attention_is_one_class_and_one_name(monkeypatch):
    """The example of docs/extending.md."""
    page = (Path(__file__).parents[3] / 'docs/extending.md').read_text('utf-8')
    (code,) = re.findall(r'```python\n([^`]*ATTENTIONS\[.*?)```', page, re.S)
    # Undone after the test.
    monkeypatch.setitem(ATTENTIONS, 'mean', None)
    exec(code)
    layer, x = build('mean'), tokens(1, 3, 4)
    mean = layer.proj(layer.v(x).mean(1, keepdim=True)).expand_as(x)
    torch.testing.assert_close(layer(x, (3, 4)), mean)
    assert build('mean', dwc_v=True)(x, (3, 4)).isfinite().all()
