"""Vanilla attention, and what all attention layers have in common."""

import math

import pytest
import torch

from anchorformer_mm.models.layers import (
    ATTENTIONS,
    AgentAttention,
    AnchorAttention,
    CastlingAttention,
    ClusterAttention,
    FocusedAttention,
    LinearAttention,
    PaCaAttention,
    PoolAttention,
    QueryAnchorAttention,
    SelfAttention,
    TransformerBlock,
    build_attention,
)


def reference(layer, x):
    """Equations 1 and 2 to the letter, head by head, in float64."""
    d = layer.embed_dims // layer.num_heads
    q, k, v = layer.qkv(x).split(layer.embed_dims, dim=-1)
    heads = []
    for i in range(layer.num_heads):
        cols = slice(i * d, (i + 1) * d)
        logits = q[..., cols] @ k[..., cols].transpose(1, 2) / math.sqrt(d)
        weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        heads.append(weights @ v[..., cols])
    return layer.proj(torch.cat(heads, dim=-1))


@pytest.mark.parametrize('qkv_bias', [False, True])
@pytest.mark.parametrize('n', [1, 7])
def test_forward_equals_the_equations(qkv_bias, n):
    layer = SelfAttention(12, 3, qkv_bias=qkv_bias).double()
    x = torch.randn(2, n, 12, dtype=torch.float64)
    torch.testing.assert_close(
        layer(x), reference(layer, x), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(
    'attention', sorted(ATTENTIONS.keys() - {'paca', 'pool'})
)
def test_convolution_of_the_values_is_added_before_the_projection(attention):
    local = build_attention(attention, 12, 3, 4, dwc_v=True).double()
    plain = build_attention(attention, 12, 3, 4).double()
    plain.load_state_dict(local.state_dict(), strict=False)
    x = torch.randn(2, 1 + 6, 12, dtype=torch.float64)
    projection = getattr(local, local.input_projection[0])
    v = projection(x)[:, 1:, -12:].transpose(1, 2).reshape(2, 12, 2, 3)
    added = torch.zeros_like(x)
    added[:, 1:] = local.dwc_v(v).flatten(2).transpose(1, 2)
    expected = plain(x, (2, 3)) + added @ local.proj.weight.T
    torch.testing.assert_close(local(x, (2, 3)), expected)


SIZES = dict(embed_dims=12, num_heads=3)
NAN = float('nan')
COUNTS = (0, -1, 2.0, True, '3', None, [4], NAN)
RATES = (1, 1.5, -0.1, NAN, '0.1', None, True)
COMMON = dict(
    embed_dims=COUNTS, num_heads=COUNTS, attn_drop=RATES, proj_drop=RATES
)
ANCHORS = COMMON | dict(num_anchors=COUNTS, order=('fast', None, 1))
BAD = {
    SelfAttention: COMMON,
    AnchorAttention: ANCHORS
    | dict(
        anchor_std=(0, -1.0, NAN, '1'), logit_std=(0, -1.0, NAN, '1', None)
    ),
    AgentAttention: COMMON | dict(num_anchors=COUNTS),
    LinearAttention: COMMON | dict(feature_map=('softmax', None)),
    FocusedAttention: COMMON | dict(power=COUNTS),
    CastlingAttention: COMMON | dict(threshold=(0, -1.0, NAN, '1')),
    PaCaAttention: COMMON | dict(num_anchors=COUNTS),
    PoolAttention: dict(embed_dims=COUNTS, num_heads=COUNTS, proj_drop=RATES),
    QueryAnchorAttention: ANCHORS | dict(select=('kmeans', None)),
    ClusterAttention: COMMON
    | dict(
        sr_ratio=COUNTS,
        k=COUNTS,
        window_size=COUNTS,
        num_clusters=(0, -1, 2.0, True, '3'),
        scales=((), 4, [4, 1], (1, 1), (0, 1), (1, 2.0), '14', (1, 3), None),
    ),
}


@pytest.mark.parametrize('layer', BAD)
def test_bad_arguments_are_named_with_their_value(layer):
    for name, values in BAD[layer].items():
        for value in values:
            with pytest.raises(ValueError, match=name) as error:
                layer(**SIZES | {name: value})
            assert repr(value) in str(error.value)


@pytest.mark.parametrize('layer', BAD)
def test_heads_that_do_not_divide_the_channels_are_named(layer):
    with pytest.raises(ValueError, match='embed_dims=12, num_heads=5'):
        layer(12, 5)


def test_bad_combinations_are_named():
    with pytest.raises(ValueError, match="dwc_v .* order='folded'"):
        AnchorAttention(12, 3, dwc_v=True, order='folded')
    with pytest.raises(ValueError, match='scales must divide sr_ratio'):
        ClusterAttention(12, 3, sr_ratio=1)
    with pytest.raises(ValueError, match='dwc_v needs the .height, width.'):
        SelfAttention(12, 3, dwc_v=True)(torch.rand(1, 6, 12))
    with pytest.raises(ValueError, match="attention must be one of.*'local'"):
        build_attention('local', 12, 3)
    with pytest.raises(ValueError, match='mlp_ratio must be .*got 0'):
        TransformerBlock(AnchorAttention(12, 3), mlp_ratio=0)


@pytest.mark.parametrize('drop', ['attn_drop', 'proj_drop'])
@pytest.mark.parametrize(
    ('layer', 'kwargs'),
    [
        (SelfAttention, dict()),
        (AnchorAttention, dict(order='paper')),
        (AnchorAttention, dict(order='folded')),
        (QueryAnchorAttention, dict()),
        (ClusterAttention, dict(sr_ratio=2)),
        (AgentAttention, dict()),
        (LinearAttention, dict()),
        (CastlingAttention, dict(threshold=0.1)),
        (PaCaAttention, dict()),
    ],
)
def test_dropout_acts_in_training_only(layer, kwargs, drop):
    layer = layer(12, 3, **kwargs, **{drop: 0.5})
    x = torch.randn(1, 16, 12)
    assert not torch.equal(layer(x, (4, 4)), layer(x, (4, 4)))
    layer.eval()
    assert torch.equal(layer(x, (4, 4)), layer(x, (4, 4)))
