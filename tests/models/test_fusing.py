import pytest
import torch
from mmengine.registry import MODELS
from torch.utils.flop_counter import FlopCounterMode

from anchorformer_mm.models.fusing import fuse
from anchorformer_mm.models.layers import AnchorAttention, FusedAnchorAttention


def build(type, **kwargs):
    torch.manual_seed(0)
    return MODELS.build(dict(type=f'anchorformer_mm.{type}', **kwargs))


def macs(model, x):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


@pytest.mark.smoke
@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='AnchorFormer', img_size=64, attn_cfg=dict(order='folded')),
        dict(type='AnchorESNet', arch='0.75x'),
        dict(
            type='AnchorLeViT', arch='256', img_size=64, out_indices=(0, 1, 2)
        ),
    ],
    ids=lambda cfg: cfg['type'],
)
def test_a_fused_backbone_is_the_same_function_for_fewer_macs(cfg):
    model = build(**cfg)
    model.eval()
    model.double()
    fused = fuse(model)

    for size in ((64, 64), (96, 160), (256, 320)):
        x = torch.rand(2, 3, *size).double()
        for got, expected in zip(fused(x), model(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    # Of the last size: very few tokens are cheaper in the paper's order.
    assert macs(fused, x) < macs(model, x)


def test_the_model_stays_as_it_is():
    model = build('AnchorFormer', img_size=64)
    names = list(model.state_dict())
    fused = fuse(model)

    assert model.training and not fused.training
    assert list(model.state_dict()) == names
    kinds = {type(module) for module in fused.modules()}
    assert FusedAnchorAttention in kinds and AnchorAttention not in kinds
