import pytest
import torch
import torch.nn.functional as F

from anchorformer_mm.models import CSPPAN, LCPAN


@pytest.mark.smoke
@pytest.mark.parametrize(
    ('in_channels', 'out_channels', 'parameters'),
    [
        ((48, 88, 176), 96, 343_488),
        ((96, 192, 384), 96, 378_048),
        ((192, 384, 768), 128, 704_768),
        ((256, 512, 1024), 160, 1_096_000),
    ],
)
def test_parameters_are_the_published_ones(
    in_channels, out_channels, parameters
):
    neck = LCPAN(in_channels, out_channels)
    assert sum(p.numel() for p in neck.parameters()) == parameters


def tiny_neck(**cfg):
    return LCPAN((4, 6, 8), 5, **cfg).eval()


def tiny_feats(size, batch=1):
    h, w = size
    feats = []
    for channels in (4, 6, 8):
        feats.append(torch.randn(batch, channels, h, w))
        h, w = -(-h // 2), -(-w // 2)
    return feats


def test_the_paths_follow_their_description():
    neck, feats = tiny_neck(), tiny_feats((16, 16))
    l3, l4, l5 = (f(x) for f, x in zip(neck.laterals, feats, strict=True))

    def up(x):
        return F.interpolate(x, scale_factor=2, mode='nearest')

    t4 = neck.top_down[0](torch.cat([up(l5), l4], 1))
    p3 = neck.top_down[1](torch.cat([up(t4), l3], 1))
    p4 = neck.bottom_up[0](torch.cat([neck.downsamples[0](p3), t4], 1))
    p5 = neck.bottom_up[1](torch.cat([neck.downsamples[1](p4), l5], 1))
    p6 = neck.extra_lateral(l5) + neck.extra_top(p5)
    torch.testing.assert_close(neck(feats), (p3, p4, p5, p6))


def test_a_fusing_block_is_two_separable_convolutions():
    fuse = tiny_neck().bottom_up[1]
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


def test_it_differs_from_csp_pan_in_the_fusing_blocks_alone():
    ours, csp = tiny_neck(), CSPPAN((4, 6, 8), 6)
    fusing = ('top_down.', 'bottom_up.')
    assert [n for n in ours.state_dict() if not n.startswith(fusing)] == [
        n for n in csp.state_dict() if not n.startswith(fusing)
    ]


@pytest.mark.parametrize('size', [(52, 52), (53, 42), (1, 3), (7, 1)])
def test_sizes_are_rounded_up_at_every_level(size):
    feats = tiny_feats(size, batch=2)
    outs = tiny_neck()(feats)
    h, w = feats[-1].shape[2:]
    expected = [*(x.shape[2:] for x in feats), (-(-h // 2), -(-w // 2))]
    assert [tuple(o.shape) for o in outs] == [(2, 5, *s) for s in expected]


def test_the_extra_level_can_be_left_out():
    assert len(tiny_neck(extra_level=False)(tiny_feats((8, 8)))) == 3


def test_initial_weights():
    neck = LCPAN((64, 64), 32)
    neck.init_weights()
    weight = neck.top_down[0][0].pointwise_conv.conv.weight
    bound = (6 / 64) ** 0.5
    assert 0.95 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(in_channels=(4,)), r'at least 2 levels, got \(4,\)'),
        (dict(out_channels=0), r'out_channels must be >= 1, got 0'),
        (dict(kernel_size=4), r'kernel_size must be odd.*got 4'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LCPAN(**(dict(in_channels=(4, 6), out_channels=8) | kwargs))


def test_a_missing_level_is_named():
    with pytest.raises(ValueError, match='3 feature maps expected, got 2'):
        tiny_neck()(tiny_feats((8, 8))[:2])
