"""Learning rates that decay by layer, in any kind of model."""

import pytest
from mmengine.model import BaseModule
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from anchorformer_mm.models import AnchorFormer

ARCH = dict(embed_dims=8, num_layers=3, num_heads=2, feedforward_channels=16)


class Segmentor(BaseModule):
    """A backbone and a head, as every OpenMMLab model has them."""

    def __init__(self, **kwargs):
        super().__init__()
        self.backbone = AnchorFormer(ARCH, img_size=32, **kwargs)
        self.decode_head = nn.Linear(8, 4)


def groups_of(model, rate=0.5, **paramwise):
    init_default_scope('mmengine')
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            constructor='anchorformer_mm.LayerDecayOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1),
            paramwise_cfg=dict(layer_decay_rate=rate, **paramwise),
        ),
    )
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        names[id(group['params'][0])]: group
        for group in wrapper.optimizer.param_groups
    }


def test_the_rate_falls_by_a_factor_with_every_layer():
    groups = groups_of(Segmentor())
    expected = {
        'decode_head.weight': 1,
        'backbone.ln1.weight': 1,
        'backbone.layers.2.attn.anchors': 0.5,
        'backbone.layers.1.attn.kv.weight': 0.25,
        'backbone.layers.0.ln1.bias': 0.125,
        'backbone.patch_embed.projection.weight': 0.0625,
        'backbone.pos_embed': 0.0625,
        'backbone.cls_token': 0.0625,
    }
    assert {name: groups[name]['lr'] for name in expected} == expected


def test_every_trained_parameter_has_its_group():
    model = Segmentor(frozen_stages=1)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(groups_of(model)) == trained


def test_what_mmengine_offers_by_parameter_still_holds():
    groups = groups_of(
        Segmentor(),
        norm_decay_mult=0.0,
        custom_keys={
            '.anchors': dict(decay_mult=0.0),
            'decode_head': dict(lr_mult=10),
        },
    )
    assert groups['backbone.layers.0.ln1.weight']['weight_decay'] == 0
    assert groups['backbone.layers.0.attn.anchors']['weight_decay'] == 0
    assert groups['backbone.layers.0.attn.kv.weight']['weight_decay'] == 0.1
    assert groups['decode_head.bias']['lr'] == 10


def test_a_bare_backbone_has_depths_too():
    groups = groups_of(AnchorFormer(ARCH, img_size=32))
    assert groups['layers.2.attn.anchors']['lr'] == 0.5
    assert groups['pos_embed']['lr'] == 0.0625


@pytest.mark.parametrize('rate', [None, 0, 1.5, 'half', True])
def test_a_wrong_rate_is_named(rate):
    with pytest.raises(ValueError, match='layer_decay_rate'):
        groups_of(Segmentor(), rate)


def test_a_model_without_depths_is_refused():
    with pytest.raises(ValueError, match='exactly one backbone'):
        groups_of(nn.Sequential(nn.Linear(2, 2)))
