import pytest
import torch
from torch import nn

from anchorformer_mm.models.layers import AnchorAttention, TransformerBlock


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
    with pytest.raises(ValueError, match='mlp_ratio must be > 0, got 0'):
        TransformerBlock(AnchorAttention(12, 3), mlp_ratio=0)
