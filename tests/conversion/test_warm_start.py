"""A ViT becomes an AnchorFormer."""

import pytest
import torch
from mmpretrain.models import (
    DistilledVisionTransformer,
    VisionTransformer,
    VisionTransformerClsHead,
)

from anchorformer_mm.conversion import (
    vanilla_model,
    vit_weights,
    warm_start,
)
from anchorformer_mm.models import AnchorFormer
from anchorformer_mm.utils.errors import UsageError

D, HEADS = 32, 2
ARCH = dict(
    embed_dims=D, num_layers=2, num_heads=HEADS, feedforward_channels=48
)
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def drawn(model, std=0.2):
    """A model whose every parameter differs from where it starts."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    model.eval()
    return model


def vit(distilled=False, **kwargs):
    cls = DistilledVisionTransformer if distilled else VisionTransformer
    return drawn(cls(ARCH, img_size=64, **kwargs))


def target(attention='learned', num_anchors=5, **kwargs):
    return AnchorFormer(
        ARCH,
        attention=attention,
        num_anchors=num_anchors,
        **(dict(img_size=64) | kwargs),
    ).eval()


def centroids(num_anchors=5):
    return [
        torch.randn(HEADS, num_anchors, D // HEADS, dtype=torch.float64)
        for _ in range(2)
    ]


def weights_of(model, head=None):
    state = {f'backbone.{n}': v for n, v in model.state_dict().items()}
    if head is not None:
        state |= {f'head.{n}': v for n, v in head.state_dict().items()}
    return vit_weights(dict(state_dict=state))


def rows(start, action):
    return {
        row['kind']: row
        for row in start.inventory.rows()
        if row['action'] == action
    }


def output(model):
    with torch.no_grad():
        out = model(IMAGES.to(model.pos_embed.dtype))[-1]
    return torch.stack(out) if isinstance(out, tuple) else out


def same(model, other, **kwargs):
    torch.testing.assert_close(output(model), output(other), **kwargs)


@pytest.mark.smoke
@pytest.mark.parametrize('distilled', [False, True])
@pytest.mark.parametrize('out_type', ['cls_token', 'raw', 'avg_featmap'])
def test_vanilla_attention_is_the_source_itself(distilled, out_type):
    source = vit(distilled, out_type=out_type)
    model = target(
        'vanilla',
        attn_cfg=dict(qkv_bias=True),
        with_dist_token=distilled,
        out_type=out_type,
    )
    model.load_state_dict(source.state_dict())
    same(model, source, atol=1e-5, rtol=1e-5)
    start = warm_start(weights_of(source), model)
    same(model, source, atol=1e-5, rtol=1e-5)
    assert not rows(start, 'dropped') and not rows(start, 'made')


@pytest.mark.parametrize('qkv_bias', [False, True])
def test_the_source_runs_as_it_was(qkv_bias):
    source = vit(qkv_bias=qkv_bias)
    cfg = dict(arch=ARCH, img_size=64, num_anchors=9, attn_cfg=dict(dwc_v=1))
    same(vanilla_model(weights_of(source), cfg), source, atol=1e-5, rtol=1e-5)


@pytest.mark.smoke
@pytest.mark.parametrize('qkv_bias', [False, True])
@pytest.mark.parametrize('num_anchors', [1, 5, 16, 17])
def test_common_anchors_do_what_those_of_each_head_do(qkv_bias, num_anchors):
    """Exactly, up to one anchor more than a head has channels (16)."""
    source, anchors = weights_of(vit()), centroids(num_anchors)
    each, common = (
        target(
            num_anchors=num_anchors,
            attn_cfg=dict(share_anchors=share, qkv_bias=qkv_bias),
        ).double()
        for share in (False, True)
    )
    warm_start(source, each, centroids=anchors)
    start = warm_start(source, common, centroids=anchors)
    same(each, common, atol=1e-9, rtol=1e-9)
    assert 'residual up to' in rows(start, 'made')['anchors']['note']
    assert common.layers[0].attn.anchors.shape[0] == 1


def test_the_residual_of_many_anchors_is_told():
    start = warm_start(
        weights_of(vit()), target(num_anchors=40), centroids=centroids(40)
    )
    note = rows(start, 'made')['anchors']['note']
    assert float(note.split()[-1]) > 0.1


def test_anchors_of_each_head_are_the_centroids():
    model = target(attn_cfg=dict(share_anchors=False))
    source, anchors = weights_of(vit()), centroids()
    warm_start(source, model, centroids=anchors)
    for i, layer in enumerate(model.layers):
        attn = layer.attn
        torch.testing.assert_close(attn.anchors, anchors[i].float())
        qkv = source.backbone[f'layers.{i}.attn.qkv.weight']
        assert torch.equal(attn.kv.weight, qkv[D:])


@pytest.mark.parametrize('attention', ['learned', 'query'])
def test_folding_the_value_bias_changes_nothing(attention):
    """Without key biases, which only one of the two could have."""
    source = vit()
    for layer in source.layers:
        layer.attn.qkv.bias.data[D : 2 * D] = 0
    anchors = centroids() if attention == 'learned' else None
    with_bias, folded = (
        target(attention, attn_cfg=dict(qkv_bias=bias)).double()
        for bias in (True, False)
    )
    warm_start(weights_of(source), with_bias, centroids=anchors)
    start = warm_start(weights_of(source), folded, centroids=anchors)
    same(with_bias, folded, atol=1e-12, rtol=1e-12)
    assert 'value biases' in rows(start, 'carried')
    assert 'key biases' in rows(start, 'dropped')


def test_a_key_bias_does_nothing_in_the_source():
    source, without = vit().double(), vit().double()
    without.load_state_dict(source.state_dict())
    for layer in without.layers:
        layer.attn.qkv.bias.data[D : 2 * D] = 0
    same(source, without, atol=1e-12, rtol=1e-12)


def test_anchors_among_the_queries_get_the_query_projection():
    source = weights_of(vit())
    model = target('query', attn_cfg=dict(qkv_bias=True))
    start = warm_start(source, model)
    for i, layer in enumerate(model.layers):
        attn = layer.attn
        for kind in ('weight', 'bias'):
            q, kv = source.backbone[f'layers.{i}.attn.qkv.{kind}'].split(
                (D, 2 * D)
            )
            assert torch.equal(getattr(attn.q, kind), q)
            assert torch.equal(getattr(attn.kv, kind), kv)
    assert not rows(start, 'made') and not rows(start, 'dropped')


def test_random_anchors_stay():
    model = target()
    before = [layer.attn.anchors.clone() for layer in model.layers]
    start = warm_start(weights_of(vit()), model)
    for anchors, layer in zip(before, model.layers, strict=True):
        assert torch.equal(layer.attn.anchors, anchors)
    assert 'initialises' in rows(start, 'made')['anchors']['note']


@pytest.mark.parametrize('attention', ['learned', 'query', 'vanilla'])
def test_biases_that_only_the_target_has_are_zero(attention):
    model = target(attention, attn_cfg=dict(qkv_bias=True))
    drawn(model)
    start = warm_start(weights_of(vit(qkv_bias=False)), model)
    for layer in model.layers:
        names = dict(learned=['kv'], query=['q', 'kv'], vanilla=['qkv'])
        for name in names[attention]:
            assert not getattr(layer.attn, name).bias.any()
    assert rows(start, 'made')['biases']['note'] == 'zero'


def test_convolutions_of_the_values_start_without_effect():
    source, anchors = weights_of(vit()), centroids()
    plain, local = target(), drawn(target(attn_cfg=dict(dwc_v=True)))
    for model in (plain, local):
        start = warm_start(source, model, centroids=anchors)
    same(local, plain)
    assert rows(start, 'made')['convolutions of the values']['tensors'] == 4


@pytest.mark.parametrize('attention', ['learned', 'query', 'vanilla'])
def test_convolutions_of_our_own_vanilla_attention_are_carried(attention):
    local = dict(attn_cfg=dict(dwc_v=True))
    source = drawn(target('vanilla', **local))
    model = target(attention, **local)
    start = warm_start(weights_of(source), model)
    row = rows(start, 'carried')['convolutions of the values']
    assert row['tensors'] == 4
    for ours, theirs in zip(model.layers, source.layers, strict=True):
        assert torch.equal(ours.attn.dwc_v.weight, theirs.attn.dwc_v.weight)
    same(
        vanilla_model(weights_of(source), dict(arch=ARCH, img_size=64)), source
    )
    start = warm_start(weights_of(source), target(attention))
    assert 'convolutions of the values' in rows(start, 'dropped')


def test_value_biases_below_a_convolution_need_biases():
    cfg = dict(dwc_v=True, qkv_bias=True)
    source = drawn(target('vanilla', attn_cfg=cfg))
    with pytest.raises(UsageError, match='convolves its values'):
        warm_start(weights_of(source), target(attn_cfg=dict(dwc_v=True)))
    warm_start(weights_of(source), target(attn_cfg=cfg))


@pytest.mark.parametrize(
    ('attention', 'qkv_bias'),
    [
        ('learned', False),
        ('learned', True),
        ('query', False),
        ('query', True),
        ('vanilla', True),
    ],
)
def test_every_parameter_of_the_source_is_listed_once(attention, qkv_bias):
    source = vit(distilled=True, out_type='avg_featmap')
    head = VisionTransformerClsHead(num_classes=7, in_channels=D)
    model = target(attention, attn_cfg=dict(qkv_bias=qkv_bias))
    start = warm_start(weights_of(source, head), model)
    total = sum(p.numel() for m in (source, head) for p in m.parameters())
    counted = [start.inventory.total(a) for a in ('carried', 'dropped')]
    assert sum(counted) == total
    assert rows(start, 'dropped')['norms']['parameters'] == 2 * D
    for row in start.inventory.rows():
        assert row['kind'] in str(start.inventory)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (
            dict(arch=ARCH | dict(num_layers=3)),
            r'has num_layers=2, but .* has num_layers=3: ',
        ),
        (
            dict(arch=ARCH | dict(embed_dims=64, feedforward_channels=64)),
            r'embed_dims=32, feedforward_channels=48, .* has embed_dims=64, ',
        ),
        (
            dict(arch=ARCH, patch_size=8),
            r'patch_size=\(16, 16\), .* patch_size=\(8, 8\)',
        ),
        (
            dict(arch=ARCH, attention='vanilla'),
            r'set attn_cfg=dict\(qkv_bias=True\)',
        ),
    ],
)
def test_what_does_not_fit_is_refused(kwargs, message):
    with pytest.raises(UsageError, match=message):
        warm_start(weights_of(vit()), AnchorFormer(img_size=64, **kwargs))


def test_training_starts_with_a_gradient_for_every_weight():
    model = target(num_anchors=5)
    warm_start(weights_of(vit()), model, centroids=centroids())
    model(IMAGES)[-1].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    for layer in model.layers:
        # Four of sixteen channels hold the five anchors.
        anchors, grad = layer.attn.anchors, layer.attn.anchors.grad
        empty = anchors.abs().sum(dim=(0, 1)) == 0
        assert empty.sum() == 12
        assert (grad.abs().sum(dim=(0, 1)) > 0).all()
