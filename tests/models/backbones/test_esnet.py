"""ESNet and AnchorESNet: blocks by their description, published sizes."""

import pytest
import torch
import torch.nn.functional as F

from anchorformer_mm.models import AnchorESNet, ESNet
from anchorformer_mm.models.backbones.esnet import (
    AnchorStage,
    ESBlock,
    ESDownBlock,
)
from anchorformer_mm.models.layers import QueryAnchorAttention

NORM_ACT = (dict(type='BN'), dict(type='HSwish'))


def conv(x, module, **kwargs):
    """A convolution with its normalisation, from the weights alone."""
    bn = module.bn
    x = F.conv2d(x, module.conv.weight, **kwargs)
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    shift = bn.bias - bn.running_mean * scale
    return x * scale[:, None, None] + shift[:, None, None]


def hswish(x):
    return x * (x + 3).clamp(0, 6) / 6


def gate(x, se):
    hidden = x.mean((2, 3), keepdim=True)
    hidden = F.conv2d(hidden, se[1].weight, se[1].bias).clamp(min=0)
    hidden = F.conv2d(hidden, se[3].weight, se[3].bias)
    return x * (hidden + 3).clamp(0, 6) / 6


def randomised(module):
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.5)
    for name, buffer in module.named_buffers():
        if 'running' in name:
            buffer.uniform_(0.5, 2)
    return module.double().eval()


def test_stride_1_block_follows_its_description():
    torch.manual_seed(0)
    block = randomised(ESBlock(16, 24, *NORM_ACT))
    x = torch.randn(2, 16, 7, 5, dtype=torch.float64)
    kept, half = x[:, :8], x[:, 8:]
    primary = hswish(conv(half, block.primary))
    cheap = conv(primary, block.cheap, padding=1, groups=12)
    hidden = gate(torch.cat([primary, cheap], 1), block.se)
    both = torch.cat([kept, hswish(conv(hidden, block.linear))], 1)
    shuffled = both[:, [c // 2 + 8 * (c % 2) for c in range(16)]]
    torch.testing.assert_close(block(x), shuffled)


def test_stride_2_block_follows_its_description():
    torch.manual_seed(0)
    block = randomised(ESDownBlock(6, 16, 24, *NORM_ACT))
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64)
    dw, pw = block.branch1
    one = conv(x, dw, padding=1, stride=2, groups=6)
    one = hswish(conv(one, pw))
    pw1, dw, se, pw2 = block.branch2
    two = hswish(conv(x, pw1))
    two = gate(conv(two, dw, padding=1, stride=2, groups=12), se)
    two = hswish(conv(two, pw2))
    dw, pw = block.fuse
    out = torch.cat([one, two], 1)
    out = hswish(conv(out, dw, padding=1, groups=16))
    out = hswish(conv(out, pw))
    assert out.shape == (2, 16, 4, 3)
    torch.testing.assert_close(block(x), out)


@pytest.mark.smoke
@pytest.mark.parametrize('arch', sorted(ESNet.arch_settings))
def test_only_the_last_stage_differs_from_esnet(arch):
    def shapes(net):
        return {
            n: p.shape
            for n, p in net.named_parameters()
            if not n.startswith(('stages.2.1', 'stages.2.2'))
        }

    assert shapes(AnchorESNet(arch)) == shapes(ESNet(arch))


def test_stage_sees_position_through_its_convolution():
    torch.manual_seed(0)
    x = torch.randn(1, 16, 6, 5)
    blind = AnchorStage(16, num_heads=2, pos_embed='none').eval()
    torch.testing.assert_close(blind(x.flip(3)), blind(x).flip(3))
    sighted = AnchorStage(16, num_heads=2).eval()
    assert not torch.allclose(sighted(x.flip(3)), sighted(x).flip(3))


def test_stage_options_reach_the_layers():
    net = AnchorESNet(
        '0.75x',
        stage_cfg=dict(
            depth=3,
            num_heads=3,
            num_anchors=7,
            attention='query',
            drop_path_rate=0.2,
            mlp_ratio=4,
        ),
    )
    blocks = net.stages[2][1].blocks
    assert [round(b.drop_path.drop_prob, 3) for b in blocks] == [0, 0.1, 0.2]
    assert all(isinstance(b.attn, QueryAnchorAttention) for b in blocks)
    assert {b.attn.num_anchors for b in blocks} == {7}
    assert {b.ffn.feedforward_channels for b in blocks} == {4 * 384}
