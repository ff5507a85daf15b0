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


@pytest.mark.parametrize('size', [(64, 64), (97, 33), (1, 1)])
def test_any_input_size_gives_rounded_up_strides(size):
    h, w = size
    outs = ESNet('0.75x').eval()(torch.rand(2, 3, h, w))
    for out, width, stride in zip(
        outs, (96, 192, 384), ESNet.out_strides, strict=True
    ):
        assert out.shape == (2, width, -(-h // stride), -(-w // stride))


def test_out_indices_choose_the_levels():
    net = ESNet('0.75x', out_indices=(0, 2)).eval()
    assert [o.shape[1] for o in net(torch.rand(1, 3, 32, 32))] == [96, 384]


def test_frozen_stages_keep_weights_and_statistics():
    net = ESNet('0.75x', frozen_stages=2).train()
    trains = {n for n, p in net.named_parameters() if p.requires_grad}
    assert trains == {
        n for n, _ in net.named_parameters() if n.startswith('stages.2.')
    }
    before = net.stages[1][0].fuse[1].bn.running_mean.clone()
    net(torch.rand(2, 3, 64, 64))
    assert torch.equal(net.stages[1][0].fuse[1].bn.running_mean, before)


def test_norm_eval_fixes_all_statistics():
    net = ESNet('0.75x', norm_eval=True).train()
    before = {n: b.clone() for n, b in net.named_buffers()}
    net(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(b, before[n]) for n, b in net.named_buffers())


def test_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    net = ESNet('0.75x', norm_eval=True).train()
    x = torch.rand(2, 3, 64, 64)
    grads = []
    for net.with_cp in (False, True):
        net.zero_grad()
        sum(o.sum() for o in net(x)).backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    torch.testing.assert_close(*grads)


def test_another_architecture_is_a_dict():
    arch = dict(widths=(32, 48, 64), ratios=((1,), (1, 0.5), (0.5, 1)))
    outs = ESNet(arch).eval()(torch.rand(1, 3, 64, 64))
    assert [o.shape[1] for o in outs] == [32, 48, 64]


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='2x'), r"one of \['0.75x', '1.0x', '1.25x'\].*got '2x'"),
        (dict(arch=dict(widths=(1, 2, 3))), r'keys widths and ratios.*widths'),
        (
            dict(arch=dict(widths=(20, 32, 48), ratios=((1,),) * 3)),
            r'three multiples of 16, got \(20, 32, 48\)',
        ),
        (
            dict(arch=dict(widths=(16, 32, 48), ratios=((1,), (), (1,)))),
            r'three non-empty sequences',
        ),
        (dict(out_indices=(0, 3)), r'out_indices.*got \(0, 3\)'),
        (dict(out_indices=()), r'out_indices.*got \(\)'),
        (dict(frozen_stages=4), r'frozen_stages must be in -1..3, got 4'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ESNet(**kwargs)
