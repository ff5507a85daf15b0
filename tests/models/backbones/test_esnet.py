import pytest
import torch
import torch.nn.functional as F

from anchorformer_mm.models import ESNet
from anchorformer_mm.models.backbones.esnet import (
    ESBlock,
    ESDownBlock,
    make_divisible,
)

SIZES = {'0.75x': 603_659, '1.0x': 1_338_026, '1.25x': 2_077_041}
NORM_ACT = (dict(type='BN'), dict(type='HSwish'))


@pytest.mark.smoke
@pytest.mark.parametrize(('arch', 'parameters'), SIZES.items())
def test_parameters_are_the_published_ones(arch, parameters):
    assert sum(p.numel() for p in ESNet(arch).parameters()) == parameters


def test_inner_widths_are_the_published_ones():
    net = ESNet('1.25x')
    inner = [
        [net._mid_channels(i, r) for r in ratios]
        for i, ratios in enumerate(net.ratios)
    ]
    assert inner == [
        [144, 80, 160],
        [200, 160, 240, 200, 200, 160, 200],
        [640, 400, 480],
    ]


@pytest.mark.parametrize(
    ('value', 'divisor', 'expected'),
    [(84, 8, 88), (3, 8, 8), (43, 8, 40), (11, 8, 16), (96, 16, 96)],
)
def test_widths_round_to_the_nearest_multiple(value, divisor, expected):
    assert make_divisible(value, divisor) == expected


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














