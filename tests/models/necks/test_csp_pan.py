"""The blocks of CSP-PAN; its paths stand in ``test_path_aggregation.py``."""

import torch

from anchorformer_mm.models import CSPPAN


def test_csp_layer_has_no_residual_and_puts_the_main_path_first():
    layer = CSPPAN((4, 6), 8).eval().top_down[0]
    x = torch.randn(1, 16, 5, 5)
    main = layer.main_conv(x)
    for block in layer.blocks:
        main = block[1](block[0](main))
    both = torch.cat([main, layer.short_conv(x)], 1)
    torch.testing.assert_close(layer(x), layer.final_conv(both))
