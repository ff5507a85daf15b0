import pytest
import torch
from torch import nn

from anchorformer_mm.models.layers import (
    AnchorAttention,
    ClusterAttention,
    TransformerBlock,
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


def test_drop_path_drops_both_branches_of_an_image():
    torch.manual_seed(0)
    block = TransformerBlock(AnchorAttention(12, 3, 4), drop_path_rate=0.5)
    x = torch.randn(64, 9, 12)
    untouched = (block(x) == x).flatten(1).all(1).float().mean()
    assert 0.1 < untouched < 0.4
    block.eval()
    assert not (block(x) == x).flatten(1).all(1).any()


def test_mlp_ratio_must_be_positive():
    with pytest.raises(ValueError, match='mlp_ratio must be .* > 0, got 0'):
        TransformerBlock(AnchorAttention(12, 3), mlp_ratio=0)


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


def test_a_block_with_a_convolution_drops_both_branches_of_an_image():
    block = TransformerBlock(
        AnchorAttention(12, 3, 4), mlp_dwconv=True, drop_path_rate=0.5
    )
    x = torch.randn(64, 6, 12)
    untouched = (block(x, (2, 3)) == x).flatten(1).all(1).float().mean()
    assert 0.1 < untouched < 0.4
    block.eval()
    assert not (block(x, (2, 3)) == x).flatten(1).all(1).any()


@pytest.mark.parametrize('mlp_dwconv', [False, True])
def test_dropout_and_activation_reach_the_feed_forward_network(mlp_dwconv):
    block = TransformerBlock(
        AnchorAttention(12, 3, 4),
        mlp_dwconv=mlp_dwconv,
        drop_rate=0.5,
        act_cfg=dict(type='ReLU'),
    )
    x = torch.randn(2, 6, 12)
    assert not torch.equal(block(x, (2, 3)), block(x, (2, 3)))
    kinds = [type(module) for module in block.ffn.modules()]
    assert nn.ReLU in kinds
    assert nn.GELU not in kinds
