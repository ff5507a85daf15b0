"""CSP-PAN and LC-PAN: paths, fusing blocks, published sizes."""

import pytest
import torch
import torch.nn.functional as F

from anchorformer_mm.models import CSPPAN, LCPAN

both_necks = pytest.mark.parametrize('neck_class', [CSPPAN, LCPAN])
channels_of_levels = pytest.mark.parametrize('channels', [(4, 6), (4, 6, 8)])


def tiny_feats(channels, size, batch=1):
    """Maps of so many channels, the first of ``size``."""
    h, w = size
    feats = []
    for c in channels:
        feats.append(torch.randn(batch, c, h, w))
        h, w = -(-h // 2), -(-w // 2)
    return feats


@both_necks
def test_the_paths_follow_their_description(neck_class):
    neck = neck_class((4, 6, 8), 10).eval()
    feats = tiny_feats((4, 6, 8), (16, 16))
    l3, l4, l5 = (f(x) for f, x in zip(neck.laterals, feats, strict=True))

    def up(x):
        return F.interpolate(x, scale_factor=2, mode='nearest')

    t4 = neck.top_down[0](torch.cat([up(l5), l4], 1))
    p3 = neck.top_down[1](torch.cat([up(t4), l3], 1))
    p4 = neck.bottom_up[0](torch.cat([neck.downsamples[0](p3), t4], 1))
    p5 = neck.bottom_up[1](torch.cat([neck.downsamples[1](p4), l5], 1))
    p6 = neck.extra_lateral(l5) + neck.extra_top(p5)
    torch.testing.assert_close(neck(feats), (p3, p4, p5, p6))


@pytest.mark.parametrize('size', [(52, 52), (53, 42), (1, 3), (7, 1)])
@pytest.mark.parametrize(
    ('neck_class', 'out_channels'), [(CSPPAN, 8), (LCPAN, 5)]
)
def test_sizes_are_rounded_up_at_every_level(neck_class, out_channels, size):
    feats = tiny_feats((4, 6, 8), size, batch=2)
    outs = neck_class((4, 6, 8), out_channels).eval()(feats)
    h, w = feats[-1].shape[2:]
    expected = [*(x.shape[2:] for x in feats), (-(-h // 2), -(-w // 2))]
    assert [tuple(o.shape) for o in outs] == [
        (2, out_channels, *s) for s in expected
    ]


@pytest.mark.parametrize(
    ('neck_class', 'kwargs', 'message'),
    [
        (CSPPAN, dict(in_channels=(4,)), r'at least 2 levels, got \(4,\)'),
        (LCPAN, dict(in_channels=(4,)), r'at least 2 levels, got \(4,\)'),
        (CSPPAN, dict(kernel_size=4), 'kernel_size must be odd.*got 4'),
        (LCPAN, dict(kernel_size=4), 'kernel_size must be odd.*got 4'),
        (CSPPAN, dict(out_channels=7), 'out_channels must be even.*got 7'),
        (LCPAN, dict(out_channels=0), 'out_channels must be .* 1, got 0'),
        (CSPPAN, dict(num_csp_blocks=0), 'num_csp_blocks must be .*, got 0'),
    ],
)
def test_bad_arguments_are_named(neck_class, kwargs, message):
    with pytest.raises(ValueError, match=message):
        neck_class(**(dict(in_channels=(4, 6), out_channels=8) | kwargs))


@channels_of_levels
@both_necks
def test_a_missing_level_is_named(neck_class, channels):
    neck = neck_class(channels, 8)
    count = len(channels)
    with pytest.raises(
        ValueError, match=f'{count} feature maps expected, got {count - 1}'
    ):
        neck(tiny_feats(channels, (8, 8))[:-1])


def test_csp_layer_has_no_residual_and_puts_the_main_path_first():
    layer = CSPPAN((4, 6), 8).eval().top_down[0]
    x = torch.randn(1, 16, 5, 5)
    main = layer.main_conv(x)
    for block in layer.blocks:
        main = block[1](block[0](main))
    both = torch.cat([main, layer.short_conv(x)], 1)
    torch.testing.assert_close(layer(x), layer.final_conv(both))


def test_a_fusing_block_is_two_separable_convolutions():
    fuse = LCPAN((4, 6, 8), 5).eval().bottom_up[1]
    shapes = [
        tuple(unit.conv.weight.shape)
        for block in fuse
        for unit in (block.depthwise_conv, block.pointwise_conv)
    ]
    assert shapes == [
        (10, 1, 5, 5),
        (10, 10, 1, 1),
        (10, 1, 5, 5),
        (5, 10, 1, 1),
    ]
    x = torch.randn(1, 10, 6, 7)
    out = x
    for block in fuse:
        for unit in (block.depthwise_conv, block.pointwise_conv):
            out = unit.bn(unit.conv(out))
            out = out * (out + 3).clamp(0, 6) / 6
    torch.testing.assert_close(fuse(x), out)
