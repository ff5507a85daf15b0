import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorformer_mm.models.layers import ClusterAttention, dpc_knn


def layer_of(**kwargs):
    layer = ClusterAttention(
        **(dict(embed_dims=12, num_heads=3, sr_ratio=2) | kwargs)
    ).double()
    # Importance that matters, of either sign.
    torch.nn.init.normal_(layer.importance.weight)
    return layer


def windows_of(hw_shape, side):
    """Indices of the tokens of each window, and the most it may hold."""
    h, w = hw_shape
    if h * w <= side**2:
        return [list(range(h * w))], h * w
    height, width = (math.ceil(n / math.ceil(n / side)) for n in hw_shape)
    windows = [
        [
            row * w + column
            for row in range(top, min(h, top + height))
            for column in range(left, min(w, left + width))
        ]
        for top in range(0, h, height)
        for left in range(0, w, width)
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


def reference(layer, x, hw_shape):
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
    outs = layer(x, hw_shape), reference(layer, x, hw_shape)
    torch.testing.assert_close(*outs, rtol=0, atol=1e-12)
    grads = [
        torch.autograd.grad(
            (out * weight).sum(), inputs, materialize_grads=True
        )
        for out in outs
    ]
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_every_parameter_learns():
    layer = ClusterAttention(12, 3, sr_ratio=2, window_size=4)
    layer(torch.randn(2, 30, 12), (5, 6)).square().sum().backward()
    for name, p in layer.named_parameters():
        assert p.grad.isfinite().all(), name
        # Within a cluster all importance may rise alike to no effect.
        assert p.grad.any() or name == 'importance.bias', name


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(num_clusters=10**6),
        dict(num_clusters=10**6, scales=(1,), qkv_bias=False),
        dict(sr_ratio=1, scales=(1,)),
    ],
)
def test_as_many_clusters_as_tokens_are_plain_attention(kwargs):
    layer = layer_of(**kwargs, window_size=2)
    x = torch.randn(2, 20, 12).double()
    q = layer.q(x)
    out = 0
    for kv in layer.kv:
        k, v = kv(x).chunk(2, dim=-1)
        heads = [
            (q_i @ k_i.mT / 2).softmax(-1) @ v_i
            for q_i, k_i, v_i in zip(
                *(t.split(4, dim=-1) for t in (q, k, v)), strict=True
            )
        ]
        out = out + torch.cat(heads, dim=-1)
    # No windows, so no need of the map's size.
    torch.testing.assert_close(layer(x), layer.proj(out), rtol=0, atol=1e-12)
    assert layer.cluster(x) == (None,) * len(layer.kv)


def test_the_clusters_are_those_of_one_map_up_to_the_size_of_a_window():
    x = torch.randn(2, 36, 12).double()
    layer = layer_of(sr_ratio=4, window_size=6)
    for hw_shape in ((6, 6), (4, 9), (1, 36), None):
        counts = (2, 8)
        clusters = layer.cluster(x, hw_shape)
        assert tuple(count for _, count in clusters) == counts
        for (ids, _), wanted in zip(clusters, dpc_knn(x, counts), strict=True):
            assert torch.equal(ids, wanted)


def test_windows_have_their_shares_of_the_clusters():
    layer = layer_of(sr_ratio=4, window_size=4)
    x = torch.randn(2, 63, 12).double()
    # 2 by 3 windows of 4 by 3 tokens; 3 and 12 clusters in all.
    (coarse, few), (fine, many) = layer.cluster(x, (7, 9))
    assert (few, many) == (6 * 1, 6 * 2)
    window = torch.arange(7)[:, None] // 4 * 3 + torch.arange(9) // 3
    window = window.flatten().expand(2, -1)
    assert torch.equal(coarse, window)
    assert torch.equal(fine // 2, window)


@settings(deadline=None, max_examples=15)
@given(n=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_permuting_tokens_permutes_the_output(n, seed):
    torch.manual_seed(seed)
    layer = layer_of()
    x = torch.randn(2, n, 12).double()
    order = torch.randperm(n)
    torch.testing.assert_close(
        layer(x[:, order]), layer(x)[:, order], rtol=0, atol=1e-12
    )


def test_an_image_does_not_depend_on_its_batch():
    layer = layer_of(window_size=4)
    x = torch.randn(3, 30, 12).double()
    one_by_one = [layer(image[None], (5, 6)) for image in x]
    torch.testing.assert_close(
        layer(x, (5, 6)), torch.cat(one_by_one), rtol=0, atol=1e-12
    )


def test_clusters_of_equal_tokens_are_one_token():
    layer = layer_of(window_size=4)
    x = torch.randn(1, 1, 12).double().expand(1, 30, 12)
    v = sum(kv(x).chunk(2, dim=-1)[1] for kv in layer.kv)
    torch.testing.assert_close(layer(x, (5, 6)), layer.proj(v))


def test_dropout_acts_in_training_only():
    for name in ('attn_drop', 'proj_drop'):
        layer = ClusterAttention(12, 3, sr_ratio=2, **{name: 0.5})
        x = torch.randn(1, 16, 12)
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))


def test_parameters_are_those_of_the_release():
    # D^2 + D queries and output, 2 D^2 + 2 D a scale, D + 1 importance.
    count = sum(p.numel() for p in ClusterAttention(64, 1).parameters())
    assert count == 6 * 64**2 + 6 * 64 + 65


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(embed_dims=0), r'embed_dims must be an int >= 1, got 0'),
        (dict(num_heads=0), r'num_heads must be an int >= 1, got 0'),
        (dict(num_heads=5), r'divisible .*embed_dims=12, num_heads=5'),
        (dict(sr_ratio=0), r'sr_ratio must be an int >= 1, got 0'),
        (dict(sr_ratio=2.0), r'sr_ratio must be an int >= 1, got 2.0'),
        (dict(k=0), r'k must be an int >= 1, got 0'),
        (dict(window_size=0), r'window_size must be an int >= 1, got 0'),
        (dict(num_clusters=0), r'num_clusters must be an int >= 1, got 0'),
        (dict(num_clusters=True), r'num_clusters must .* >= 1, got True'),
        (dict(scales=()), r'scales must be rising ints >= 1, got \(\)'),
        (dict(scales=4), r'scales must be rising ints >= 1, got 4'),
        (dict(scales=[4, 1]), r'rising ints >= 1, got \[4, 1\]'),
        (dict(scales=(1, 1)), r'rising ints >= 1, got \(1, 1\)'),
        (dict(scales=(0, 1)), r'rising ints >= 1, got \(0, 1\)'),
        (dict(scales=(1, 2.0)), r'rising ints >= 1, got \(1, 2.0\)'),
        (dict(scales='14'), r"rising ints >= 1, got '14'"),
        (
            dict(sr_ratio=2, scales=(1, 3)),
            r'scales must divide sr_ratio\*\*2 = 4, got \(1, 3\)',
        ),
        (dict(sr_ratio=1), r'scales must divide sr_ratio\*\*2 = 1, got'),
        (dict(attn_drop=1.0), r'attn_drop must be in \[0, 1\), got 1.0'),
        (dict(proj_drop=-0.1), r'proj_drop must be in \[0, 1\), got -0.1'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ClusterAttention(**(dict(embed_dims=12, num_heads=3) | kwargs))


def test_the_size_of_the_map_must_be_that_of_the_tokens():
    layer = ClusterAttention(12, 3, sr_ratio=2, window_size=4)
    message = r'hw_shape must be that of a map of 16 tokens, got \(4, 5\)'
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(1, 16, 12), (4, 5))
    message = r'window_size\*\*2 = 16 tokens .*, got 17 tokens and .*=None'
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(1, 17, 12))
