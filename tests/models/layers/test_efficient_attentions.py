"""Attention of linear cost by others, each against its paper's equations."""

import math

import pytest
import torch
from torch import nn

from anchorformer_mm.models.layers import build_attention

D, HEADS, M = 12, 3, 6
# Agents of M = 6 lie on a grid of 2 x 3.
GRID = (2, 3)
NAMES = ['agent', 'linear', 'focused', 'castling', 'paca', 'pool']
WITH_VALUES = NAMES[:4]
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


# ------------------------------------------------- the equations, by loops


def cells(q, extra, height, width):
    """Means of the map (rows of q) over the cells of the grid."""
    rows, columns = GRID
    means = []
    for r in range(rows):
        for c in range(columns):
            inside = [
                q[extra + y * width + x]
                for y in range(r * height // rows, -(-(r + 1) * height // rows))
                for x in range(c * width // columns,
                               -(-(c + 1) * width // columns))
            ]  # fmt: skip
            means.append(torch.stack(inside).mean(0))
    return torch.stack(means)


def softmax(logits, dim=-1):
    return logits.exp() / logits.exp().sum(dim, keepdim=True)


def focus(x, p):
    x = x.clamp(min=0)
    norm, norm_p = x.square().sum().sqrt(), (x**p).square().sum().sqrt()
    return x if norm == 0 else norm / norm_p * x**p


def head(name, layer, q, k, v, shape):
    """One head of one image, in (n, d)."""
    n, d = q.shape
    if name == 'agent':
        a = cells(q, *shape)
        return softmax(q @ a.T / math.sqrt(d)) @ (
            softmax(a @ k.T / math.sqrt(d)) @ v
        )
    rows = []
    if name == 'castling':
        m = softmax(q @ k.T / math.sqrt(d))
        for i in range(n):
            u = v[i] / 2
            for j in range(n):
                cos = q[i] @ k[j] / q[i].norm() / k[j].norm()
                u = u + cos * v[j] / math.pi
                if layer.training and m[i, j] > layer.threshold / n:
                    u = u + m[i, j] * v[j]
            rows.append(u / u.norm())
        return torch.stack(rows)
    if name == 'focused':
        phi = lambda x: focus(x, layer.power)  # noqa: E731
    elif layer.feature_map == 'elu':
        phi = lambda x: torch.where(x > 0, x + 1, x.exp())  # noqa: E731
    else:
        phi = lambda x: x.clamp(min=0)  # noqa: E731
    for i in range(n):
        weights = torch.stack([phi(q[i]) @ phi(k[j]) for j in range(n)])
        rows.append(weights @ v / weights.sum().clamp(min=1e-6))
    return torch.stack(rows)


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
        if name == 'paca':
            q_i, k_i, v_i = qkv
            out.append(softmax(q_i @ k_i.T / math.sqrt(d)) @ v_i)
        else:
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
