from types import SimpleNamespace

import torch

from anchorformer_mm.models import AnchorESNet
from anchorformer_mm.registry import HOOKS


def test_every_map_stays_channels_last_and_results_stay_the_same():
    net = AnchorESNet('0.75x').eval()
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = net(x)
        hook = HOOKS.build(dict(type='ChannelsLastHook'))
        hook.before_run(SimpleNamespace(model=net))
        outs = net(x)
    for out, reference in zip(outs[:2], expected[:2], strict=True):
        assert out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-5)
