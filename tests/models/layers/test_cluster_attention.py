"""Attention to clusters: clustering, merging, windows, attention."""

import math
from decimal import Decimal

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorformer_mm.models.layers import (
    ClusterAttention,
    dpc_knn,
    merge_tokens,
)
from anchorformer_mm.models.layers import cluster_attention as module

HALVES = [torch.bfloat16, torch.float16]


def test_memory_is_linear_in_the_tokens_of_a_map_with_windows(largest_tensor):
    layer = ClusterAttention(16, 2, sr_ratio=4, window_size=8)
    largest = []
    for hw_shape in ((16, 16), (16, 32), (32, 32)):
        n = math.prod(hw_shape)
        x = torch.randn(1, n, 16, requires_grad=True)
        with largest_tensor() as mode:
            layer(x, hw_shape).sum().backward()
        largest.append(mode.numel)
    # The pairs of all windows, nothing larger, forward and backward.
    assert largest == [64 * n for n in (256, 512, 1024)]


def layer_of(**kwargs):
    layer = ClusterAttention(
        **(dict(embed_dims=12, num_heads=3, sr_ratio=2) | kwargs)
    ).double()
    # Importance that matters, of either sign.
    torch.nn.init.normal_(layer.importance.weight)
    return layer


def windows_of(hw_shape, side):
    """Indices of the tokens of each window, and the most it may hold."""
    places = torch.arange(math.prod(hw_shape)).view(hw_shape)
    if places.numel() <= side**2:
        return [places.flatten().tolist()], places.numel()
    height, width = (math.ceil(n / math.ceil(n / side)) for n in hw_shape)
    windows = [
        window.flatten().tolist()
        for row in places.split(height)
        for window in row.split(width, dim=1)
    ]
    return windows, height * width


def clusters_of(image, hw_shape, count, layer):
    """Lists of tokens; each window by itself, without any padding."""
    if count >= len(image):
        return [[i] for i in range(len(image))]
    windows, most = windows_of(hw_shape, layer.window_size)
    share = min(math.ceil(count / len(windows)), most)
    clusters = []
    for window in windows:
        (ids,) = dpc_knn(image[None, window], [share], layer.k)
        for c in range(min(share, len(window))):
            members = (ids[0] == c).nonzero().flatten().tolist()
            clusters.append([window[i] for i in members])
    assert sorted(sum(clusters, [])) == list(range(len(image)))
    return clusters


def attention_by_hand(layer, x, hw_shape):
    """The docstring to the letter: image, scale, cluster and head in turn."""
    n, d = x.shape[1], layer.embed_dims // layer.num_heads
    base = layer.num_clusters or max(1, n // layer.sr_ratio**2)
    images = []
    for image in x:
        q = layer.q(image)
        importance = (
            image @ layer.importance.weight[0] + layer.importance.bias
        ).exp()
        total = 0
        for scale, kv in zip(layer.scales, layer.kv, strict=True):
            merged = [
                (importance[c, None] * image[c]).sum(0) / importance[c].sum()
                for c in clusters_of(
                    image.detach(), hw_shape, base * scale, layer
                )
            ]
            projected = torch.stack(merged) @ kv.weight.T
            if kv.bias is not None:
                projected = projected + kv.bias
            k, v = projected.split(layer.embed_dims, dim=1)
            heads = []
            for i in range(layer.num_heads):
                cols = slice(i * d, (i + 1) * d)
                p = (q[:, cols] @ k[:, cols].T / math.sqrt(d)).exp()
                heads.append(p / p.sum(1, keepdim=True) @ v[:, cols])
            total = total + torch.cat(heads, dim=1)
        images.append(total @ layer.proj.weight.T + layer.proj.bias)
    return torch.stack(images)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ('batch', 'hw_shape', 'kwargs'),
    [
        (2, (6, 6), dict()),
        (1, (5, 7), dict(sr_ratio=4)),
        (3, (4, 9), dict(sr_ratio=4, scales=(1, 2, 8), k=3)),
        (2, (5, 3), dict(num_clusters=3, scales=(2,), qkv_bias=False)),
        # Fewer tokens than sr_ratio squared: one cluster at scale 1.
        (2, (5, 7), dict(sr_ratio=8)),
        (2, (1, 1), dict(sr_ratio=8)),
        (2, (1, 13), dict(sr_ratio=3, scales=(1, 3, 9))),
        # As many clusters as tokens: plain attention.
        (2, (4, 5), dict(num_clusters=10**6, window_size=2)),
        (2, (4, 5), dict(sr_ratio=1, scales=(1,))),
        # Windows: whole ones, ones that reach beyond, a share of all tokens.
        (2, (8, 8), dict(sr_ratio=4, window_size=4)),
        (2, (7, 9), dict(window_size=4)),
        (1, (5, 13), dict(sr_ratio=4, window_size=4, k=20)),
        (2, (1, 19), dict(window_size=4)),
        (2, (5, 5), dict(num_clusters=24, scales=(1,), window_size=4)),
    ],
)
def test_forward_and_gradients_equal_the_equation(batch, hw_shape, kwargs):
    layer = layer_of(**kwargs)
    x = torch.randn(batch, math.prod(hw_shape), 12).double().requires_grad_()
    weight = torch.randn_like(x)
    inputs = (x, *layer.parameters())
    outs = layer(x, hw_shape), attention_by_hand(layer, x, hw_shape)
    torch.testing.assert_close(*outs, rtol=0, atol=1e-12)
    grads = [
        torch.autograd.grad(
            (out * weight).sum(), inputs, materialize_grads=True
        )
        for out in outs
    ]
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_the_size_of_the_map_must_be_that_of_the_tokens():
    layer = ClusterAttention(12, 3, sr_ratio=2, window_size=4)
    message = r'hw_shape must be that of a map of 16 tokens, got \(4, 5\)'
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(1, 16, 12), (4, 5))
    message = r'window_size\*\*2 = 16 tokens .*, got 17 tokens and .*=None'
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(1, 17, 12))


def slow_dpc_knn(x, counts, k=5):
    """The docstring for one image, pair by pair, with 28 digits.

    x (n, D); returns for each count the cluster of each token, a list.
    """
    x = np.asarray(x, dtype=np.float64)
    n, channels = x.shape
    squared = [
        [Decimal(float(((a - b) ** 2).sum())) / channels for b in x] for a in x
    ]
    k = min(k, n)
    density = [(-sum(sorted(row)[:k]) / k).exp() for row in squared]
    largest = max(map(max, squared))

    def separation(i):
        denser = [
            squared[i][j]
            for j in range(n)
            if (-density[j], j) < (-density[i], i)
        ]
        return min(denser, default=largest).sqrt()

    score = [density[i] * separation(i) for i in range(n)]
    order = sorted(range(n), key=lambda i: (-score[i], i))
    partitions = []
    for count in counts:
        centres = sorted(order[:count])
        ids = [
            min(range(len(centres)), key=lambda c: row[centres[c]])
            for row in squared
        ]
        for own, centre in enumerate(centres):
            ids[centre] = own
        partitions.append(ids)
    return partitions


def clusters_by_hand(x, counts, k=5):
    images = zip(*(slow_dpc_knn(image, counts, k) for image in x), strict=True)
    return [torch.tensor(ids) for ids in images]


def assert_clusters(found, reference):
    for ids, wanted in zip(found, reference, strict=True):
        assert ids.dtype == torch.int64
        assert torch.equal(ids, wanted)


def integers_of_zero_mean(n, channels, spread, seed):
    """Tokens with many equal distances, in all of which nothing is rounded.

    The mean is exactly zero: one half mirrors the other. ``channels`` must be
    a power of four.
    """
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(
        -spread, spread + 1, (n // 2, channels), generator=generator
    )
    x = torch.cat((half, -half, torch.zeros(n % 2, channels)))
    return x[torch.randperm(n, generator=generator)]


@pytest.mark.smoke
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ('n', 'channels', 'k'), [(1, 3, 5), (2, 3, 5), (30, 1, 5), (25, 16, 40)]
)
def test_random_tokens_are_clustered_by_the_definition(n, channels, k, dtype):
    x = torch.randn(3, n, channels, dtype=dtype)
    counts = (1, 2, 7, n, n + 9)
    assert_clusters(dpc_knn(x, counts, k), clusters_by_hand(x, counts, k))


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 14),
    channels=st.sampled_from([1, 4]),
    spread=st.integers(0, 3),
    k=st.integers(1, 16),
    counts=st.lists(st.integers(1, 16), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
)
def test_of_equals_the_lower_index_comes_first(
    n, channels, spread, k, counts, seed
):
    x = integers_of_zero_mean(n, channels, spread, seed).double()[None]
    assert_clusters(dpc_knn(x, counts, k), clusters_by_hand(x, counts, k))


@pytest.mark.parametrize('dtype', HALVES)
def test_half_precision_is_clustered_in_float32(dtype):
    x = torch.randn(1, 150, 16).to(dtype)
    reference = dpc_knn(x.float(), (10, 40))
    assert_clusters(dpc_knn(x, (10, 40)), reference)
    with torch.autocast('cpu', dtype=dtype):
        assert_clusters(dpc_knn(x, (10, 40)), reference)
        assert_clusters(dpc_knn(x.float(), (10, 40)), reference)


def test_ties_are_settled_the_same_in_onnxruntime(tmp_path):
    x = torch.stack([integers_of_zero_mean(25, 4, 1, i) for i in range(3)])
    # What is valid has a mean of zero too.
    valid = torch.ones(3, 25, dtype=torch.bool)
    for i in range(3):
        zero = (x[i] == 0).all(1).nonzero()[0]
        valid[i, zero] = False
    net, path = torch.nn.Module(), tmp_path / 'clustering.onnx'
    net.forward = lambda x, valid: (
        *dpc_knn(x, (4, 9)),
        *dpc_knn(x, (4, 9), valid=valid),
    )
    torch.onnx.export(
        net, (x, valid), path, dynamo=False, input_names=['x', 'valid']
    )
    outs = onnxruntime.InferenceSession(path).run(
        None, dict(x=x.numpy(), valid=valid.numpy())
    )
    assert_clusters(map(torch.from_numpy, outs), net(x, valid))


def random_clusters(n=23, count=6, channels=5, dtype=torch.float64):
    """Tokens of two images; cluster 4 is empty."""
    x = torch.randn(2, n, channels, dtype=dtype)
    logits = 3 * torch.randn(2, n, dtype=dtype)
    assignment = torch.randint(0, count - 1, (2, n))
    assignment[assignment == 4] = count - 1
    return x, logits, assignment, count


def sets_of(ids):
    """A partition, whatever the clusters are called."""
    return {
        frozenset((ids == c).nonzero().flatten().tolist())
        for c in ids.unique()
    }


@pytest.mark.parametrize(('limit', 'images'), [(1, 1), (2 * 20**2 + 1, 2)])
@pytest.mark.parametrize('padded', [False, True])
def test_large_batches_are_clustered_in_parts(
    limit, images, padded, monkeypatch, largest_tensor
):
    x = torch.randn(5, 20, 4)
    valid = torch.rand(5, 20) < 0.6 if padded else None
    whole = dpc_knn(x, (3, 8), valid=valid)
    monkeypatch.setattr(module, '_MAX_PAIRS', limit)
    with largest_tensor() as mode:
        parts = dpc_knn(x, (3, 8), valid=valid)
    assert_clusters(parts, whole)
    assert mode.numel == images * 20**2


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(0, 10),
    padding=st.integers(0, 10),
    content=st.sampled_from([0.0, -7.0, 1e30, torch.inf, torch.nan]),
    spread=st.sampled_from([0, 2, None]),
    count=st.integers(1, 12),
    seed=st.integers(0, 10**6),
)
def test_what_is_not_valid_changes_nothing(
    n, padding, content, spread, count, seed
):
    """Neither the order of ties nor anything else."""
    if not n + padding:
        return
    generator = torch.Generator().manual_seed(seed)
    if spread is None:
        tokens = torch.randn(n, 4, generator=generator)
    else:
        tokens = integers_of_zero_mean(n, 4, spread, seed)
    place = torch.randperm(n + padding, generator=generator)[:n].sort().values
    x = torch.full((1, n + padding, 4), content, dtype=torch.float64)
    x[0, place] = tokens.double()
    valid = torch.zeros(1, n + padding, dtype=torch.bool)
    valid[0, place] = True
    (ids,) = dpc_knn(x, [count], valid=valid)
    assert ids.min() >= 0
    assert ids.max() < min(count, n + padding)
    if n:
        (alone,) = dpc_knn(tokens.double()[None], [count])
        assert sets_of(ids[0, place]) == sets_of(alone[0])
    if n >= count:
        assert torch.equal(ids[:, place], alone)


@pytest.mark.smoke
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_merged_tokens_are_weighted_means(dtype):
    x, logits, assignment, count = random_clusters(dtype=dtype)
    merged, filled = merge_tokens(x, logits, assignment, count)
    assert merged.dtype == dtype
    p = (assignment[:, None] == torch.arange(count)[:, None]).double()
    p = p * logits.double().exp()[:, None]
    wanted = p @ x.double() / p.sum(2, keepdim=True)
    # An empty cluster is flagged, and zero to the bit.
    assert torch.equal(filled, p.any(2)) and not filled[:, 4].any()
    assert (merged[:, 4] == 0).all()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(
        merged.double(), wanted.nan_to_num(), rtol=tolerance, atol=tolerance
    )


def test_any_importance_gives_finite_tokens_and_gradients():
    x = torch.randn(1, 6, 3, requires_grad=True)
    logits = torch.tensor([[-1e4, 1e4, 1e4, -1e4, -1e4, -1e4]])
    logits.requires_grad_()
    assignment = torch.tensor([[0, 0, 0, 1, 1, 2]])
    merged, filled = merge_tokens(x, logits, assignment, 3)
    assert filled.all()
    wanted = torch.stack((x[0, 1:3].mean(0), x[0, 3:5].mean(0), x[0, 5]))
    torch.testing.assert_close(merged[0], wanted)
    merged.square().sum().backward()
    assert x.grad.isfinite().all()
    assert logits.grad.isfinite().all()
