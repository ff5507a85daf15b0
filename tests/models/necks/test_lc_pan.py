"""The blocks of LC-PAN; its paths stand in ``test_path_aggregation.py``."""

import torch

from anchorformer_mm.models import CSPPAN, LCPAN


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


def test_it_differs_from_csp_pan_in_the_fusing_blocks_alone():
    ours, csp = LCPAN((4, 6, 8), 5), CSPPAN((4, 6, 8), 6)
    fusing = ('top_down.', 'bottom_up.')
    assert [n for n in ours.state_dict() if not n.startswith(fusing)] == [
        n for n in csp.state_dict() if not n.startswith(fusing)
    ]


def test_initial_weights():
    neck = LCPAN((64, 64), 32)
    neck.init_weights()
    weight = neck.top_down[0][0].pointwise_conv.conv.weight
    bound = (6 / 64) ** 0.5
    assert 0.95 * bound < weight.abs().max() <= bound
