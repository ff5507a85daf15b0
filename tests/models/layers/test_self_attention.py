import math

import pytest
import torch

from anchorformer_mm.models.layers import SelfAttention, build_attention


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


@pytest.mark.parametrize('attention', ['learned', 'query', 'vanilla'])
def test_convolution_of_the_values_is_added_before_the_projection(attention):
    local = build_attention(attention, 12, 3, 4, dwc_v=True).double()
    plain = build_attention(attention, 12, 3, 4).double()
    plain.load_state_dict(local.state_dict(), strict=False)
    x = torch.randn(2, 1 + 6, 12, dtype=torch.float64)
    projection = getattr(local, local.input_projection[0])
    v = projection(x)[:, 1:, -12:].transpose(1, 2).reshape(2, 12, 2, 3)
    added = torch.zeros_like(x)
    added[:, 1:] = local.dwc_v(v).flatten(2).transpose(1, 2)
    expected = plain(x) + added @ local.proj.weight.T
    torch.testing.assert_close(local(x, (2, 3)), expected)


def test_dropout_acts_in_training_only():
    layer = SelfAttention(12, 3, attn_drop=0.5)
    x = torch.randn(1, 9, 12)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="attention must be one of.*'local'"):
        build_attention('local', 12, 3)
