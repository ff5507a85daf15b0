import pytest
import torch
import torch.nn.functional as F

from anchorformer_mm.models import CSPPAN


@pytest.mark.smoke
@pytest.mark.parametrize(
    ('in_channels', 'out_channels', 'parameters'),
    [
        ((96, 192, 384), 96, 249_600),
        ((128, 256, 512), 128, 435_200),
        ((160, 320, 640), 160, 672_000),
    ],
)
def test_parameters_are_the_published_ones(
    in_channels, out_channels, parameters
):
    neck = CSPPAN(in_channels, out_channels)
    assert sum(p.numel() for p in neck.parameters()) == parameters


def test_the_paths_follow_their_description():
    torch.manual_seed(0)
    neck = CSPPAN((4, 6, 8), 8).eval()
    feats = [torch.randn(1, c, s, s) for c, s in ((4, 16), (6, 8), (8, 4))]
    l3, l4, l5 = (f(x) for f, x in zip(neck.laterals, feats, strict=True))

    def up(x):
        return F.interpolate(x, scale_factor=2, mode='nearest')

    t4 = neck.top_down[0](torch.cat([up(l5), l4], 1))
    p3 = neck.top_down[1](torch.cat([up(t4), l3], 1))
    p4 = neck.bottom_up[0](torch.cat([neck.downsamples[0](p3), t4], 1))
    p5 = neck.bottom_up[1](torch.cat([neck.downsamples[1](p4), l5], 1))
    p6 = neck.extra_lateral(l5) + neck.extra_top(p5)
    torch.testing.assert_close(neck(feats), (p3, p4, p5, p6))


def test_csp_layer_has_no_residual_and_puts_the_main_path_first():
    torch.manual_seed(0)
    layer = CSPPAN((4, 6), 8).eval().top_down[0]
    x = torch.randn(1, 16, 5, 5)
    main = layer.main_conv(x)
    for block in layer.blocks:
        main = block[1](block[0](main))
    both = torch.cat([main, layer.short_conv(x)], 1)
    torch.testing.assert_close(layer(x), layer.final_conv(both))


@pytest.mark.parametrize('size', [(52, 52), (53, 42), (1, 3), (7, 1)])
def test_sizes_are_rounded_up_at_every_level(size):
    h, w = size
    shapes = []
    for _ in range(4):
        shapes.append((h, w))
        h, w = -(-h // 2), -(-w // 2)
    neck = CSPPAN((4, 6, 8), 8).eval()
    feats = [
        torch.randn(2, c, *s)
        for c, s in zip((4, 6, 8), shapes[:3], strict=True)
    ]
    assert [tuple(o.shape) for o in neck(feats)] == [
        (2, 8, *s) for s in shapes
    ]


def test_the_extra_level_can_be_left_out():
    neck = CSPPAN((4, 6), 8, extra_level=False).eval()
    outs = neck([torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)])
    assert [o.shape[-1] for o in outs] == [8, 4]


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(in_channels=(4,)), r'at least 2 levels, got \(4,\)'),
        (dict(out_channels=7), r'out_channels must be even.*got 7'),
        (dict(kernel_size=4), r'kernel_size must be odd.*got 4'),
        (dict(num_csp_blocks=0), r'num_csp_blocks must be >= 1, got 0'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CSPPAN(**(dict(in_channels=(4, 6), out_channels=8) | kwargs))


def test_a_missing_level_is_named():
    with pytest.raises(ValueError, match='2 feature maps expected, got 1'):
        CSPPAN((4, 6), 8)([torch.randn(1, 4, 8, 8)])
