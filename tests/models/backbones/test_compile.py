"""Tokens and their stages are one graph, for one size and for any size."""

import pytest
import torch

from anchorformer_mm.models.backbones.anchor_esnet import AnchorStage
from anchorformer_mm.models.backbones.anchorformer import AnchorFormer

ARCH = dict(embed_dims=64, num_layers=1, num_heads=2, feedforward_channels=64)


@pytest.mark.parametrize(
    ('build', 'channels'),
    [
        (lambda: AnchorFormer(ARCH, img_size=64, num_anchors=8), 3),
        (lambda: AnchorStage(64, depth=1, num_heads=2, num_anchors=8), 64),
    ],
    ids=['AnchorFormer', 'AnchorStage'],
)
@pytest.mark.parametrize('dynamic', [False, True])
def test_it_is_compiled_without_a_break(build, channels, dynamic):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = build()
    model.eval()
    # A break of the graph is an error.
    compiled = torch.compile(
        model, backend='aot_eager', fullgraph=True, dynamic=dynamic
    )
    for size in ((64, 64), (96, 160)):
        x = torch.rand(1, channels, *size)
        with torch.no_grad():
            got, expected = compiled(x), model(x)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)
