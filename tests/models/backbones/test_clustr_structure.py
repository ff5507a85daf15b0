"""What ClusTR is built of, and what it is built into."""

import mmdet.registry
import mmpretrain.registry
import mmseg.registry
import pytest
import torch
from torch import nn

from anchorformer_mm.models import ClusTR

LIBRARIES = (mmdet, mmpretrain, mmseg)
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


@pytest.mark.smoke
@pytest.mark.parametrize('library', LIBRARIES, ids=lambda m: m.__name__)
def test_every_library_builds_it_by_its_type(library):
    cfg = dict(type='anchorformer_mm.ClusTR', arch=TINY)
    assert isinstance(library.registry.MODELS.build(cfg), ClusTR)


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


def test_a_checkpoint_gives_the_same_maps(tmp_path):
    source = tiny()
    weights = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    path = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict=weights), path)
    target = tiny(
        init_cfg=dict(
            type='Pretrained', checkpoint=str(path), prefix='backbone.'
        )
    )
    target.init_weights()
    images = torch.rand(1, 3, 70, 33)
    torch.testing.assert_close(target(images), source(images))
    tiny().load_state_dict(source.state_dict(), strict=True)


def test_levels_go_straight_into_the_necks_and_heads_of_the_libraries():
    dims = [16, 24, 32, 40]
    net = ClusTR(TINY | dict(embed_dims=dims)).eval()
    outs = net(torch.rand(2, 3, 61, 75))
    fpn = mmdet.registry.MODELS.build(
        dict(type='FPN', in_channels=dims, out_channels=8, num_outs=5)
    )
    strides = (4, 8, 16, 32, 64)
    assert [level.shape[1:] for level in fpn(outs)] == [
        (8, -(-61 // s), -(-75 // s)) for s in strides
    ]
    head = dict(
        in_channels=dims, in_index=[0, 1, 2, 3], channels=8, num_classes=3
    )
    for extra in (
        dict(type='FPNHead', feature_strides=[4, 8, 16, 32]),
        dict(type='UPerHead'),
    ):
        decode = mmseg.registry.MODELS.build(
            dict(head, align_corners=False, **extra)
        )
        assert decode(outs).shape == (2, 3, 16, 19)
    pool = mmpretrain.registry.MODELS.build(dict(type='GlobalAveragePooling'))
    assert [f.shape for f in pool(outs)] == [(2, dim) for dim in dims]


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='b1'), r"arch must be one of \('tiny', .* or a.*'b1'"),
        (dict(arch=dict(embed_dims=16)), r"exactly the keys \('embed_dims'"),
        (dict(arch=TINY | dict(num_heads=0)), r"arch\['num_heads'\].*got 0"),
        (dict(arch=TINY | dict(num_layers=(1, 2))), r"'num_layers.*\(1, 2\)"),
        (dict(arch=TINY | dict(num_heads=3)), 'embed_dims=32, num_heads=3'),
        (dict(in_channels=0), 'in_channels must be an int >= 1, got 0'),
        (dict(sr_ratios=(8, 4, 2)), r'sr_ratios .* 4 .*got \(8, 4, 2\)'),
        (dict(sr_ratios=0), 'sr_ratios must be an int >= 1 .* got 0'),
        (dict(num_clusters=0), 'num_clusters must be None, an int.* got 0'),
        (dict(num_clusters=(None, 2)), r'num_clusters .* got \(None, 2\)'),
        (dict(scales=4), 'scales must be a sequence.*got 4'),
        (dict(scales=()), r'scales must be a sequence.*got \(\)'),
        (dict(scales=((1, 4),) * 3), 'one sequence of ints or 4'),
        (dict(scales=(4, 1)), r'scales must be rising .* got \(4, 1\)'),
        (dict(scales=(1, 3)), r'scales must divide sr_ratio\*\*2 = 64'),
        (dict(k=0), 'k must be an int >= 1 .* got 0'),
        (dict(window_size=-1), 'window_size must be .* got -1'),
        (dict(drop_rate=1), r'drop_rate must be in \[0, 1\), got 1'),
        (dict(attn_drop_rate=2), r'attn_drop.* must be in \[0, 1\), got 2'),
        (dict(drop_path_rate=-0.1), r'drop_path_rate must be .* got -0.1'),
        (dict(out_indices=(3, 1)), r'out_indices must .* got \(3, 1\)'),
        (dict(out_indices=(4,)), r'out_indices must .* got \(4,\)'),
        (dict(frozen_stages=5), r'frozen_stages must be in -1..4, got 5'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ClusTR(**dict(arch=TINY) | kwargs)
