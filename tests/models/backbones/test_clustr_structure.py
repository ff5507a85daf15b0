"""What ClusTR is built of, and what it is built into."""

import mmdet.registry
import mmpretrain.registry
import mmseg.registry
import pytest
import torch
from torch import nn

from anchorformer_mm.models import ClusTR

# One number for all stages.
TINY = dict(embed_dims=32, num_heads=2, num_layers=1, mlp_ratios=2)


def tiny(**kwargs):
    return ClusTR(TINY, **kwargs).eval()


def test_options_reach_the_layers():
    model = tiny(
        drop_path_rate=0.3,
        drop_rate=0.1,
        attn_drop_rate=0.2,
        qkv_bias=False,
        sr_ratios=(4, 2, 2, 1),
        num_clusters=(3, None, 5, None),
        scales=((1, 2), (1, 4), (2,), (1, 4)),
        k=(1, 2, 3, 4),
        window_size=7,
        act_cfg=dict(type='ReLU'),
    )
    blocks = [stage.blocks[0] for stage in model.stages]
    rates = [block.drop_path.drop_prob for block in blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    assert rates == [block.ffn.drop_path.drop_prob for block in blocks]
    assert {block.ffn.drop.p for block in blocks} == {0.1}
    assert {block.attn.attn_drop.p for block in blocks} == {0.2}
    assert {type(block.ffn.act) for block in blocks} == {nn.ReLU}
    clustered = [block.attn for block in blocks[:3]]
    assert [a.q.bias for a in clustered] == [None] * 3
    assert blocks[3].attn.qkv.bias is None
    assert [a.num_clusters for a in clustered] == [3, None, 5]
    assert [a.scales for a in clustered] == [(1, 2), (1, 4), (2,)]
    assert [(a.k, a.window_size) for a in clustered] == [
        (1, 7),
        (2, 7),
        (3, 7),
    ]
    assert [a.sr_ratio for a in clustered] == [4, 2, 2]
    # Clusters of its own make the last stage cluster too.
    assert tiny(num_clusters=4).stages[3].blocks[0].attn.num_clusters == 4


def test_layer_depths_rise_along_the_forward_pass():
    model = ClusTR(TINY | dict(num_layers=(2, 1, 3, 1)))
    found = {}
    for name, _ in model.named_parameters():
        depth, depths = model.get_layer_depth(f'net.{name}', 'net.')
        assert depths == 9
        part = tuple(name.split('.')[1:4])
        part = part if part[1] == 'blocks' else part[:2]
        assert found.setdefault(part, depth) == depth
    assert list(found.values()) == [
        *(0, 1, 2, 2),
        *(3, 3, 3),
        *(4, 4, 5, 6, 6),
        *(7, 7, 7),
    ]
    assert model.get_layer_depth('head.fc.weight', 'net.') == (8, 9)
    assert model.get_layer_depth('stages.0.norm.weight') == (2, 9)




def test_initial_weights():
    model = ClusTR(TINY | dict(embed_dims=64, mlp_ratios=8))
    model.init_weights()
    for name, module in model.named_modules():
        std = module.weight.std().item() if hasattr(module, 'weight') else 0
        if isinstance(module, nn.Conv2d):
            inputs = module.in_channels // module.groups
            fan = 9 if 'ffn' in name else module.kernel_size[0] ** 2 * 64
            assert inputs == (1 if 'ffn' in name else module.in_channels)
            assert std == pytest.approx((2 / fan) ** 0.5, rel=0.05), name
        elif isinstance(module, nn.Linear):
            rel = 0.3 if 'importance' in name else 0.05
            assert std == pytest.approx(0.02, rel=rel), name
        elif isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6
            assert torch.equal(module.weight, torch.ones(64))
        else:
            continue
        assert not module.bias.any(), name






