import math

import pytest
import torch
from torch.nn import functional as F

from anchorformer_mm.models.layers import ConvFFN


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


def test_equal_tokens_differ_by_their_distance_to_the_border():
    ffn = ConvFFN(3, 8).double()
    x = torch.ones(1, 5 * 6, 3).double()
    out = ffn(x, (5, 6), torch.zeros_like(x)).unflatten(1, (5, 6))
    torch.testing.assert_close(
        out[:, 1:-1, 1:-1], out[:, 2:3, 2:3].expand(1, 3, 4, 3)
    )
    kinds = (out[0, 0, 0], out[0, 0, 1], out[0, 1, 0], out[0, 1, 1])
    assert len({tuple(t.tolist()) for t in kinds}) == 4


def test_drop_path_skips_whole_images():
    ffn = ConvFFN(4, 8, drop_path_rate=0.5)
    x, identity = torch.randn(2, 60, 6, 4)
    added = ffn(x, (2, 3), identity) - identity
    dropped = (added == 0).flatten(1).all(1)
    assert 0.2 < dropped.float().mean() < 0.8
    # What is kept makes up for what is not.
    ffn.eval()
    expected = 2 * (ffn(x, (2, 3), identity) - identity)
    torch.testing.assert_close(added[~dropped], expected[~dropped])


def test_dropout_acts_in_training_only():
    ffn = ConvFFN(4, 8, ffn_drop=0.5)
    x = torch.randn(2, 6, 4)
    out = ffn(x, (2, 3), torch.zeros_like(x))
    # On the output: about half of it is nothing.
    assert 0.2 < (out == 0).float().mean() < 0.8
    ffn.eval()
    plain = ConvFFN(4, 8)
    plain.load_state_dict(ffn.state_dict())
    assert torch.equal(ffn(x, (2, 3), x), plain(x, (2, 3), x))


def test_the_activation_is_a_choice():
    ffn = ConvFFN(3, 8, act_cfg=dict(type='ReLU')).double()
    x = torch.randn(1, 6, 3).double()
    h = ffn.fc1(x)
    feature = h.transpose(1, 2).unflatten(2, (2, 3))
    # Neighbours by torch's own window operator.
    patches = F.unfold(feature, 3, padding=1).unflatten(1, (8, 9))
    conv = (patches * ffn.conv.weight.flatten(1)[..., None]).sum(2)
    h = h + (conv + ffn.conv.bias[:, None]).transpose(1, 2)
    expected = ffn.fc2(h.clamp(min=0))
    out = ffn(x, (2, 3), torch.zeros_like(x))
    torch.testing.assert_close(out, expected)


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
