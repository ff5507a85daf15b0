"""A ViT becomes an AnchorFormer."""

import argparse
import re
import sys

import pytest
import torch
from mmpretrain.models import (
    DeiTClsHead,
    DistilledVisionTransformer,
    VisionTransformer,
    VisionTransformerClsHead,
)

from anchorformer_mm.conversion.vit import (
    read_checkpoint,
    sizes_of,
    vanilla_model,
    vit_weights,
    warm_start,
)
from anchorformer_mm.models import AnchorFormer
from anchorformer_mm.models.layers import ATTENTIONS
from anchorformer_mm.utils.errors import UsageError

D, HEADS = 32, 2
ARCH = dict(
    embed_dims=D, num_layers=2, num_heads=HEADS, feedforward_channels=48
)
CFG = dict(arch=ARCH, img_size=64)
VANILLA = dict(attention='vanilla', attn_cfg=dict(qkv_bias=True))
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def drawn(model):
    """A model whose every parameter differs from where it starts."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.eval()
    return model


def vit(distilled=False, **kwargs):
    cls = DistilledVisionTransformer if distilled else VisionTransformer
    return drawn(cls(ARCH, img_size=64, **kwargs))


def target(attention='learned', **kwargs):
    cfg = CFG | dict(num_anchors=5) | kwargs
    return AnchorFormer(attention=attention, **cfg).eval()


def centroids(m=5):
    return [torch.randn(HEADS, m, D // HEADS).double() for _ in range(2)]


def weights_of(model, head=None):
    state = model.state_dict(prefix='backbone.')
    if head is not None:
        head.state_dict(destination=state, prefix='head.')
    return vit_weights(state)


def start(source, model, action='', **kwargs):
    """Rows of one action of the inventory of a warm start, by kind."""
    _, inventory = warm_start(weights_of(source), model, **kwargs)
    rows = inventory.rows()
    return {row['kind']: row for row in rows if row['action'] == action}


def output(model):
    with torch.no_grad():
        out = model(IMAGES.to(model.pos_embed.dtype))[-1]
    return torch.stack(out) if isinstance(out, tuple) else out


def same(model, other, tol=1e-5):
    torch.testing.assert_close(
        output(model), output(other), atol=tol, rtol=tol
    )


# Checkpoints.


class Malicious:
    def __reduce__(self):
        return print, ('code from a checkpoint ran',)


@pytest.mark.smoke
@pytest.mark.parametrize(
    'content', [dict(a=Malicious()), [torch.ones(2)], None]
)
def test_a_checkpoint_of_other_contents_is_refused(tmp_path, content, capsys):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(UsageError, match=r'a\.pth'):
        read_checkpoint(tmp_path / 'a.pth')
    assert 'ran' not in capsys.readouterr().out


def test_a_checkpoint_of_the_deit_release_keeps_its_command_line(tmp_path):
    args = argparse.Namespace(lr=0.1, model='deit')
    path = tmp_path / 'a.pth'
    torch.save(dict(model=dict(a=torch.ones(2)), args=args), path)
    assert torch.equal(read_checkpoint(path)['model']['a'], torch.ones(2))


def test_safetensors_is_read_or_asks_for_its_package(tmp_path, monkeypatch):
    path = tmp_path / 'a.safetensors'
    path.write_bytes(b'no weights')
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'safetensors', None)
        with pytest.raises(UsageError, match='pip install safetensors'):
            read_checkpoint(path)
    library = pytest.importorskip('safetensors.torch')
    with pytest.raises(UsageError, match=r'a\.safetensors'):
        read_checkpoint(path)
    library.save_file(dict(a=torch.ones(2)), path)
    assert torch.equal(read_checkpoint(path)['a'], torch.ones(2))


# Names by hand, as timm and the DeiT release write them.
TIMM = {
    'cls_token': 'cls_token',
    'dist_token': 'dist_token',
    'pos_embed': 'pos_embed',
    'patch_embed.proj.weight': 'patch_embed.projection.weight',
    'patch_embed.proj.bias': 'patch_embed.projection.bias',
    'norm.weight': 'ln1.weight',
    'norm.bias': 'ln1.bias',
}
TIMM |= {
    f'blocks.{i}.{theirs}.{kind}': f'layers.{i}.{ours}.{kind}'
    for i in range(2)
    for kind in ('weight', 'bias')
    for theirs, ours in (
        ('norm1', 'ln1'),
        ('attn.qkv', 'attn.qkv'),
        ('attn.proj', 'attn.proj'),
        ('norm2', 'ln2'),
        ('mlp.fc1', 'ffn.layers.0.0'),
        ('mlp.fc2', 'ffn.layers.1'),
    )
}
WEIGHTS = dict(target(with_dist_token=True, **VANILLA).state_dict())
HEAD = {
    f'layers.{name}.{kind}': torch.rand(size)
    for name in ('head', 'head_dist')
    for kind, size in (('weight', (5, D)), ('bias', (5,)))
}
HEAD['layers.pre_logits.weight'] = torch.rand(D, D)
OF_TIMM = (
    {name: WEIGHTS[ours] for name, ours in TIMM.items()}
    | {n.removeprefix('layers.'): v for n, v in HEAD.items() if 'pre' not in n}
    | {'pre_logits.fc.weight': HEAD['layers.pre_logits.weight']}
)
OF_MMPRETRAIN = (
    {f'backbone.{name}': value for name, value in WEIGHTS.items()}
    | {f'head.{name}': value for name, value in HEAD.items()}
    | {'neck.weight': torch.rand(3)}
)
FORMATS = dict(
    mmpretrain=dict(state_dict=OF_MMPRETRAIN, meta=dict(epoch=3)),
    mmpretrain_bare=OF_MMPRETRAIN,
    backbone=WEIGHTS | {f'head.{n}': v for n, v in HEAD.items()},
    deit=dict(model=OF_TIMM, epoch=300),
    timm=OF_TIMM,
    timm_training=dict(state_dict=OF_TIMM, arch='deit'),
)


@pytest.mark.smoke
@pytest.mark.parametrize('name', FORMATS)
def test_every_format_gives_the_same_weights(name):
    found = vit_weights(FORMATS[name])
    for part, wanted in ((found.backbone, WEIGHTS), (found.head, HEAD)):
        assert set(part) == set(wanted)
        assert all(part[key] is wanted[key] for key in wanted)
    other = {'neck.weight'} if 'mmpretrain' in name else set()
    assert set(found.other) == other
    assert sizes_of(found.backbone) == dict(
        num_layers=2,
        embed_dims=D,
        feedforward_channels=48,
        patch_size=(16, 16),
        in_channels=3,
    )


def test_the_grid_of_positions_is_kept_where_a_checkpoint_tells():
    model = AnchorFormer('tiny', attention='vanilla', img_size=(32, 64))
    assert vit_weights(model.state_dict()).grid == [2, 4]
    prefixed = model.state_dict(prefix='backbone.')
    assert vit_weights(dict(state_dict=prefixed)).grid == [2, 4]
    assert vit_weights(WEIGHTS).grid is None


def without(name):
    return {n: v for n, v in WEIGHTS.items() if n != name}


@pytest.mark.parametrize(
    ('state', 'message'),
    [
        ({f'conv{i}.w': torch.rand(1) for i in range(7)}, r'conv4\.w$'),
        ({}, 'none$'),
        (without('layers.1.ln2.bias'), r'layers\.1\.ln2\.bias'),
        (without('layers.1.attn.qkv.bias'), r'layers\.1\.attn\.qkv\.bias'),
        (WEIGHTS | {'layers.0.gamma': torch.rand(D)}, r'layers\.0\.gamma'),
        (
            WEIGHTS | {'layers.1.attn.proj.weight': torch.rand(D, 3)},
            r'layers\.1\.attn\.proj\.weight.*32, 3.*32, 32',
        ),
        (WEIGHTS | {'pos_embed': torch.rand(1, 18, 5)}, 'pos_embed.* 5'),
        (target().state_dict(), r'layers\.0\.attn\.qkv\.weight'),
    ],
)
def test_a_state_dict_of_no_whole_plain_vit_is_refused(state, message):
    with pytest.raises(UsageError, match=message):
        vit_weights(state)


# Attention.


@pytest.mark.smoke
@pytest.mark.parametrize('distilled', [False, True])
@pytest.mark.parametrize('out_type', ['cls_token', 'raw', 'avg_featmap'])
def test_vanilla_attention_is_the_source_itself(distilled, out_type):
    source = vit(distilled, out_type=out_type)
    model = target(with_dist_token=distilled, out_type=out_type, **VANILLA)
    _, inventory = warm_start(weights_of(source), model)
    same(model, source)
    assert {row['action'] for row in inventory.rows()} == {'carried'}


@pytest.mark.parametrize('timm', [False, True])
def test_layer_scale_goes_into_the_layers_before_it(timm):
    source = vit(layer_cfgs=dict(layer_scale_init_value=0.5))
    state = source.state_dict(prefix='backbone.')
    if timm:
        names = (
            ('attn.gamma1.weight', 'ls1.gamma'),
            (
                'ffn.gamma2.weight',
                'ls2.gamma',
            ),
        )
        for old, new in names:
            state = {n.replace(old, new): v for n, v in state.items()}
    state['backbone.mask_token'] = torch.zeros(1, 1, D)
    model = target(**VANILLA)
    warm_start(vit_weights(dict(state_dict=state)), model)
    same(source, model)


def test_separate_anchors_gather_and_are_read():
    """The first half of the centroids gathers, the second is read."""
    source, anchors = vit(), centroids(m=6)
    attn_cfg = dict(tied=False, logits='standardized')
    each, common = (
        target(num_anchors=3, attn_cfg=attn_cfg | dict(share_anchors=share))
        for share in (False, True)
    )
    for model in (each, common):
        start(source, model.double(), centroids=anchors)
    same(each, common, 1e-9)
    attn = each.layers[1].attn
    torch.testing.assert_close(
        torch.cat((attn.gather_anchors, attn.anchors), 1), anchors[1]
    )


def test_the_rest_of_a_model_is_carried_where_it_fits():
    source = vit_weights(
        vit().state_dict(prefix='backbone.')
        | {'neck.a': torch.ones(2), 'neck.b': torch.ones(3)}
    )
    rest = {'neck.a': torch.zeros(2), 'neck.b': torch.zeros(4)}
    state, inventory = warm_start(source, target(), rest=rest)
    assert torch.equal(state['neck.a'], torch.ones(2))
    assert 'neck.b' not in state
    rows = [r for r in inventory.rows() if r['kind'] == 'other weights']
    assert [(r['action'], r['parameters']) for r in rows] == [
        ('carried', 2),
        ('dropped', 3),
    ]


@pytest.mark.smoke
@pytest.mark.parametrize('qkv_bias', [False, True])
@pytest.mark.parametrize('m', [1, 5, 16, 17])
def test_common_anchors_do_what_those_of_each_head_do(qkv_bias, m):
    """Exactly, up to one anchor more than a head has channels (16)."""
    source, anchors = vit(), centroids(m)
    each, common = (
        target(
            num_anchors=m,
            attn_cfg=dict(share_anchors=share, qkv_bias=qkv_bias),
        ).double()
        for share in (False, True)
    )
    start(source, each, centroids=anchors)
    made = start(source, common, 'made', centroids=anchors)
    same(each, common, 1e-9)
    assert float(made['anchors']['note'].split()[-1]) < 1e-9
    assert common.layers[0].attn.anchors.shape[0] == 1


@pytest.mark.parametrize('given', [True, False])
def test_anchors_of_each_head_are_the_centroids_or_stay(given):
    model = target(attn_cfg=dict(share_anchors=False))
    wanted = [layer.attn.anchors.clone() for layer in model.layers]
    source, anchors = weights_of(vit()), centroids() if given else None
    warm_start(source, model, centroids=anchors)
    for i, layer in enumerate(model.layers):
        anchor = anchors[i].float() if given else wanted[i]
        torch.testing.assert_close(layer.attn.anchors, anchor)
        qkv = source.backbone[f'layers.{i}.attn.qkv.weight']
        assert torch.equal(layer.attn.kv.weight, qkv[D:])


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
    start(source, with_bias, centroids=anchors)
    dropped = start(source, folded, 'dropped', centroids=anchors)
    same(with_bias, folded, 1e-12)
    assert 'key biases' in dropped


def test_anchors_among_the_queries_get_the_query_projection():
    source = weights_of(vit())
    model = target('query', attn_cfg=dict(qkv_bias=True))
    _, inventory = warm_start(source, model)
    for i, layer in enumerate(model.layers):
        for kind in ('weight', 'bias'):
            qkv = source.backbone[f'layers.{i}.attn.qkv.{kind}']
            assert torch.equal(getattr(layer.attn.q, kind), qkv[:D])
            assert torch.equal(getattr(layer.attn.kv, kind), qkv[D:])
    assert {row['action'] for row in inventory.rows()} == {'carried'}


@pytest.mark.parametrize('attention', ['learned', 'query', 'vanilla'])
def test_biases_that_only_the_target_has_are_zero(attention):
    model = drawn(target(attention, attn_cfg=dict(qkv_bias=True)))
    made = start(vit(qkv_bias=False), model, 'made')
    names = dict(learned=['kv'], query=['q', 'kv'], vanilla=['qkv'])[attention]
    for layer in model.layers:
        assert not any(getattr(layer.attn, n).bias.any() for n in names)
    assert made['biases']['tensors'] == 2 * len(names)


def test_convolutions_of_the_values_start_without_effect():
    source, anchors = vit(), centroids()
    plain, local = target(), drawn(target(attn_cfg=dict(dwc_v=True)))
    start(source, plain, centroids=anchors)
    made = start(source, local, 'made', centroids=anchors)
    same(local, plain)
    assert made['convolutions of the values']['tensors'] == 4


@pytest.mark.parametrize('attention', ['learned', 'query', 'vanilla'])
def test_convolutions_of_our_own_vanilla_attention_are_carried(attention):
    source = drawn(target('vanilla', attn_cfg=dict(dwc_v=True)))
    model = target(attention, attn_cfg=dict(dwc_v=True))
    carried = start(source, model, 'carried')
    assert carried['convolutions of the values']['tensors'] == 4
    for ours, theirs in zip(model.layers, source.layers, strict=True):
        assert torch.equal(ours.attn.dwc_v.weight, theirs.attn.dwc_v.weight)
    same(vanilla_model(weights_of(source), CFG), source)
    dropped = start(source, target(attention), 'dropped')
    assert 'convolutions of the values' in dropped


def test_value_biases_below_a_convolution_need_biases():
    cfg = dict(dwc_v=True, qkv_bias=True)
    source = drawn(target('vanilla', attn_cfg=cfg))
    with pytest.raises(UsageError, match='qkv_bias=True'):
        start(source, target(attn_cfg=dict(dwc_v=True)))
    start(source, target(attn_cfg=cfg))


@pytest.mark.parametrize(
    'attention', sorted(ATTENTIONS.keys() - {'paca', 'pool'})
)
@pytest.mark.parametrize('qkv_bias', [False, True])
def test_every_parameter_of_the_source_is_listed_once(attention, qkv_bias):
    source = vit(distilled=True, out_type='avg_featmap', qkv_bias=qkv_bias)
    head = VisionTransformerClsHead(num_classes=7, in_channels=D)
    model = target(attention, attn_cfg=dict(qkv_bias=qkv_bias))
    _, inventory = warm_start(weights_of(source, head), model)
    rows = inventory.rows()
    total = sum(p.numel() for m in (source, head) for p in m.parameters())
    listed = [row['parameters'] for row in rows if row['action'] != 'made']
    assert sum(listed) == total
    assert all(row['kind'] in str(inventory) for row in rows)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (
            dict(arch=ARCH | dict(num_layers=3)),
            'num_layers=2.*num_layers=3',
        ),
        (
            dict(arch=ARCH | dict(embed_dims=64, feedforward_channels=64)),
            'embed_dims=32, feedforward_channels=48.*embed_dims=64, ',
        ),
        (dict(patch_size=8), r'patch_size=\(16, 16\).*patch_size=\(8, 8\)'),
        (dict(in_channels=1), 'in_channels=3.*in_channels=1'),
        (dict(attention='vanilla'), 'qkv_bias=True'),
        (dict(attention='paca', attn_cfg=None), 'PaCaAttention has no place'),
        (dict(attention='pool', attn_cfg=None), 'PoolAttention has no place'),
    ],
)
def test_a_target_of_other_sizes_is_refused(kwargs, message):
    with pytest.raises(UsageError, match=message):
        start(vit(), AnchorFormer(**CFG | kwargs))


def test_training_starts_with_a_gradient_for_every_weight():
    model = target()
    start(vit(), model, centroids=centroids())
    model(IMAGES)[-1].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    for layer in model.layers:
        # Four of sixteen channels hold the five anchors.
        anchors, grad = layer.attn.anchors, layer.attn.anchors.grad
        assert (anchors.abs().sum(dim=(0, 1)) == 0).sum() == 12
        assert (grad.abs().sum(dim=(0, 1)) > 0).all()


# Class tokens, positions and heads.


def test_a_new_distillation_token_copies_the_class_token():
    source = vit()
    model = target(with_dist_token=True)
    made = start(source, model, 'made')
    assert torch.equal(model.dist_token, source.cls_token)
    assert torch.equal(model.pos_embed[:, 0], model.pos_embed[:, 1])
    assert torch.equal(model.pos_embed[:, 1:], source.pos_embed)
    row = made['distillation token and its position']
    assert (row['tensors'], row['parameters']) == (2, 2 * D)
    # Equal tokens see the same.
    torch.testing.assert_close(*output(model))


@pytest.mark.parametrize(
    ('kwargs', 'kept'),
    [
        (dict(), [0]),
        (dict(with_cls_token=False, out_type='featmap'), []),
    ],
)
def test_class_tokens_that_the_target_has_not_go_with_their_positions(
    kwargs, kept
):
    source, model = vit(distilled=True), target(**kwargs)
    dropped = start(source, model, 'dropped')
    wanted = source.pos_embed[:, [*kept, *range(2, 18)]]
    assert torch.equal(model.pos_embed, wanted)
    assert sum('token' in kind for kind in dropped) == 2 - len(kept)


def test_class_tokens_that_only_the_target_has_stay():
    source = drawn(target(with_cls_token=False, out_type='raw', **VANILLA))
    model = target()
    before = model.cls_token.clone(), model.pos_embed[:, :1].clone()
    made = start(source, model, 'made')
    assert torch.equal(model.cls_token, before[0])
    assert torch.equal(model.pos_embed[:, :1], before[1])
    assert torch.equal(model.pos_embed[:, 1:], source.pos_embed)
    assert 'class tokens' in made


def test_positions_are_resized_as_mmpretrain_resizes_them():
    source = vit()
    larger = VisionTransformer(ARCH, img_size=96)
    larger.load_state_dict(source.state_dict())
    model = target(img_size=96)
    start(source, model)
    torch.testing.assert_close(model.pos_embed, larger.pos_embed)


def test_a_grid_that_is_no_square_needs_a_checkpoint_that_tells_it():
    state = target(**VANILLA, img_size=(32, 96)).state_dict()
    model, wanted = (target(**VANILLA, img_size=(64, 96)) for _ in range(2))
    warm_start(vit_weights(state), model)
    wanted.load_state_dict(state)
    assert torch.equal(model.pos_embed, wanted.pos_embed)
    with pytest.raises(UsageError, match='grid of 3 x 3 patches'):
        warm_start(vit_weights(dict(state)), model)


@pytest.mark.parametrize(
    ('of_source', 'of_target', 'carried', 'made'),
    [
        (VisionTransformerClsHead, VisionTransformerClsHead, 2, 0),
        (DeiTClsHead, DeiTClsHead, 4, 0),
        (DeiTClsHead, VisionTransformerClsHead, 2, 0),
        (VisionTransformerClsHead, DeiTClsHead, 2, 2),
    ],
)
def test_heads_of_the_same_classes_are_carried(
    of_source, of_target, carried, made
):
    before, head = (
        drawn(cls(num_classes=7, in_channels=D))
        for cls in (of_source, of_target)
    )
    state, inventory = warm_start(weights_of(vit(), before), target(), head)
    assert torch.equal(head.layers.head.weight, before.layers.head.weight)
    if of_target is DeiTClsHead:
        last = 'head_dist' if of_source is DeiTClsHead else 'head'
        wanted = getattr(before.layers, last)
        assert torch.equal(head.layers.head_dist.weight, wanted.weight)
    for name, value in head.state_dict().items():
        assert torch.equal(state[f'head.{name}'], value)
    counts = {
        row['action']: row['tensors']
        for row in inventory.rows()
        if row['kind'].startswith('head')
    }
    lost = len(before.state_dict()) - carried
    wanted = dict(carried=carried, made=made, dropped=lost)
    assert counts == {action: n for action, n in wanted.items() if n}


@pytest.mark.parametrize(
    ('kwargs', 'note'),
    [
        (dict(num_classes=9), r'layers\.head\.weight is \(7, 32\), \(9, 32\)'),
        (dict(num_classes=7, hidden_dim=D), r'layers\.pre_logits\.weight'),
    ],
)
def test_other_heads_are_dropped_as_a_whole(kwargs, note):
    before = VisionTransformerClsHead(num_classes=7, in_channels=D)
    head = drawn(VisionTransformerClsHead(in_channels=D, **kwargs))
    weight = head.layers.head.weight.clone()
    state, inventory = warm_start(weights_of(vit(), before), target(), head)
    assert torch.equal(head.layers.head.weight, weight)
    assert not any(name.startswith('head') for name in state)
    (row,) = (row for row in inventory.rows() if row['kind'] == 'head')
    assert row['action'] == 'dropped'
    assert re.search(note, row['note'])
