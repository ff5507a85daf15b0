import pytest
import torch
import torch.nn.functional as F

from anchorformer_mm.models import LCNet

# Scale, channels of the outputs, parameters: PicoDet v2 XS, S, M and L.
SIZES = {
    '0.35x': ((48, 88, 176), 136_810),
    '0.75x': ((96, 192, 384), 584_488),
    '1.5x': ((192, 384, 768), 2_235_792),
    '2.0x': ((256, 512, 1024), 3_929_792),
}


@pytest.mark.smoke
@pytest.mark.parametrize('arch', SIZES)
def test_widths_and_parameters(arch):
    net = LCNet(arch)
    widths, parameters = SIZES[arch]
    assert net.widths == widths
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_kernels_strides_and_gates_are_the_published_ones():
    net = LCNet(1)
    blocks = [*net.stem[1:], *(b for stage in net.stages for b in stage)]
    convs = [b.depthwise_conv.conv for b in blocks]
    assert [c.kernel_size[0] for c in convs] == 6 * [3] + 7 * [5]
    assert [c.stride[0] for c in convs] == [1, 2, 1, 2, 1, 2, *5 * [1], 2, 1]
    assert [len(list(b.se.children())) > 0 for b in blocks] == (
        11 * [False] + 2 * [True]
    )
    assert [b.pointwise_conv.out_channels for b in blocks] == (
        [32, 64, 64, 128, 128, *6 * [256], 512, 512]
    )
    assert net.stem[0].out_channels == 16
    assert all(c.bias is None for c in convs)


def conv(x, module, **kwargs):
    """A convolution with its normalisation, from the weights alone."""
    bn = module.bn
    x = F.conv2d(x, module.conv.weight, **kwargs)
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    shift = bn.bias - bn.running_mean * scale
    return hswish(x * scale[:, None, None] + shift[:, None, None])


def hswish(x):
    return x * (x + 3).clamp(0, 6) / 6


@pytest.mark.parametrize(('stage', 'gated'), [(1, False), (2, True)])
def test_block_follows_its_description(stage, gated):
    block = LCNet(0.25).double().eval().stages[stage][0]
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.5)
    channels = block.depthwise_conv.in_channels
    k = block.depthwise_conv.conv.kernel_size[0]
    x = torch.randn(2, channels, 7, 6, dtype=torch.float64)
    out = conv(
        x, block.depthwise_conv, padding=k // 2, stride=2, groups=channels
    )
    if gated:
        hidden = out.mean((2, 3), keepdim=True)
        se = block.se
        hidden = F.conv2d(hidden, se[1].weight, se[1].bias).clamp(min=0)
        hidden = F.conv2d(hidden, se[3].weight, se[3].bias)
        out = out * (hidden + 3).clamp(0, 6) / 6
    out = conv(out, block.pointwise_conv)
    assert out.shape[2:] == (4, 3)
    torch.testing.assert_close(block(x), out)


@pytest.mark.parametrize(
    ('arch', 'same'), [('0.5x', 0.5), ('2x', 2), ('1.0x', 1.0)]
)
def test_scale_is_a_string_or_a_number(arch, same):
    assert LCNet(arch).scale == LCNet(same).scale == same
