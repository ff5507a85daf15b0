"""The block, its feed-forward network, and position embeddings."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anchorformer_mm.models.layers import (
    AnchorAttention,
    ClusterAttention,
    ConvFFN,
    TransformerBlock,
    fit_position_embedding,
    resize_position_embedding,
)


def test_block_is_pre_norm_with_two_residuals():
    torch.manual_seed(0)
    block = TransformerBlock(AnchorAttention(12, 3, 4), mlp_ratio=2)
    x = torch.randn(2, 9, 12)
    mixed = x + block.attn(block.ln1(x))
    hidden = nn.functional.gelu(block.ffn.layers[0][0](block.ln2(mixed)))
    expected = mixed + block.ffn.layers[1](hidden)
    torch.testing.assert_close(block(x), expected)
    assert block.ffn.feedforward_channels == 24
    assert block.ln1.eps == 1e-6


def test_a_block_with_a_convolution_is_pre_norm_too():
    block = TransformerBlock(
        ClusterAttention(12, 3, sr_ratio=2, window_size=3),
        mlp_ratio=2,
        mlp_dwconv=True,
    )
    x = torch.randn(2, 20, 12)
    # The attention, too, is told the size of the map: it has windows.
    mixed = x + block.attn(block.ln1(x), (4, 5))
    expected = block.ffn(block.ln2(mixed), (4, 5), mixed)
    torch.testing.assert_close(block(x, (4, 5)), expected)
    assert block.ffn.conv.weight.shape == (24, 1, 3, 3)
    with pytest.raises(ValueError, match='map of 20 tokens, got None'):
        TransformerBlock(AnchorAttention(12, 3), mlp_dwconv=True)(x)


def by_hand(ffn, x, hw_shape):
    """The docstring token by token, without the identity; float64."""
    h, w = hw_shape
    hidden = x @ ffn.fc1.weight.T + ffn.fc1.bias
    mixed = hidden + ffn.conv.bias
    for row in range(h):
        for column in range(w):
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    r, c = row + i, column + j
                    if 0 <= r < h and 0 <= c < w:
                        mixed[:, row * w + column] += (
                            hidden[:, r * w + c]
                            * ffn.conv.weight[:, 0, i + 1, j + 1]
                        )
    # The Gaussian error linear unit from its definition.
    active = mixed * (1 + torch.erf(mixed / math.sqrt(2))) / 2
    return active @ ffn.fc2.weight.T + ffn.fc2.bias


@pytest.mark.smoke
@pytest.mark.parametrize('hw_shape', [(1, 1), (4, 4), (2, 5), (5, 1)])
def test_forward_equals_the_definition(hw_shape):
    ffn = ConvFFN(3, 8).double()
    x, identity = torch.randn(2, 2, math.prod(hw_shape), 3).double()
    expected = identity + by_hand(ffn, x, hw_shape)
    torch.testing.assert_close(ffn(x, hw_shape, identity), expected)


def test_the_convolution_starts_with_the_variance_of_nine_inputs():
    ffn = ConvFFN(4, 4096)
    linear = ffn.fc1.weight.clone()
    ffn.init_weights()
    std = ffn.conv.weight.std().item()
    assert std == pytest.approx(math.sqrt(2 / 9), rel=0.05)
    assert (ffn.conv.bias == 0).all()
    assert torch.equal(ffn.fc1.weight, linear)


@pytest.mark.parametrize('hw_shape', [None, (2, 4)])
def test_the_size_of_the_map_must_be_known(hw_shape):
    x = torch.randn(1, 6, 4)
    with pytest.raises(ValueError, match='map of 6 tokens, got'):
        ConvFFN(4, 8)(x, hw_shape, x)


D = 4
CLS, DIST = 'cls_token', 'dist_token'
tokens = st.sampled_from([(), (CLS,), (DIST,), (CLS, DIST)])
sides = st.integers(1, 6)


def own_of(names):
    return {name: torch.randn(1, 1, D) for name in names}


@settings(max_examples=50, deadline=None)
@given(theirs=tokens, ours=tokens, h=sides, w=sides)
def test_class_tokens_are_found_dropped_or_kept_and_the_grid_goes_with_them(
    theirs, ours, h, w
):
    pos_embed = torch.randn(1, len(theirs) + h * w, D)
    own = own_of(ours)
    fitted = fit_position_embedding(pos_embed, theirs, own, (h, w), (h, w))
    assert fitted.shape == (1, len(ours) + h * w, D)
    for i, name in enumerate(ours):
        expected = own[name][0, 0]
        if name in theirs:
            expected = pos_embed[0, theirs.index(name)]
        assert torch.equal(fitted[0, i], expected)
    assert torch.equal(fitted[:, len(ours) :], pos_embed[:, len(theirs) :])


def test_the_grid_is_resized_and_class_tokens_are_not():
    pos_embed = torch.randn(1, 1 + 2 * 6, D)
    fitted = fit_position_embedding(
        pos_embed, [CLS], own_of([CLS]), [2, 6], (4, 3), mode='bilinear'
    )
    assert torch.equal(fitted[:, 0], pos_embed[:, 0])
    expected = resize_position_embedding(
        pos_embed[:, 1:], (2, 6), (4, 3), mode='bilinear'
    )
    assert torch.equal(fitted[:, 1:], expected)


def test_a_grid_that_the_checkpoint_does_not_tell_is_a_square():
    pos_embed = torch.randn(1, 2 + 9, D)
    fitted = fit_position_embedding(pos_embed, [CLS, DIST], {}, None, (3, 3))
    assert torch.equal(fitted, pos_embed[:, 2:])


@pytest.mark.parametrize(
    ('length', 'grid', 'message'),
    [
        (13, None, '13 tokens, 1 of them .* other 12 are not a grid of 3 x 3'),
        (13, (5, 2), 'other 12 are not a grid of 5 x 2 patches'),
        (1, None, 'other 0 are not a grid'),
        (0, None, 'other -1 are not a grid'),
    ],
)
def test_what_is_no_grid_is_refused(length, grid, message):
    pos_embed = torch.randn(1, length, D)
    with pytest.raises(ValueError, match=message):
        fit_position_embedding(pos_embed, [CLS], own_of([CLS]), grid, (3, 3))
