"""What a warm start makes of class tokens, positions and heads."""

import pytest
import torch
from mmpretrain.models import (
    DeiTClsHead,
    VisionTransformer,
    VisionTransformerClsHead,
)

from anchorformer_mm.conversion import vit_weights, warm_start
from anchorformer_mm.models import AnchorFormer
from anchorformer_mm.utils.errors import UsageError

D = 32
ARCH = dict(embed_dims=D, num_layers=1, num_heads=2, feedforward_channels=48)
VANILLA = dict(attention='vanilla', attn_cfg=dict(qkv_bias=True))


def target(**kwargs):
    return AnchorFormer(ARCH, **(dict(img_size=64) | kwargs)).eval()


def vit(**kwargs):
    return target(**VANILLA, **kwargs)


def weights_of(model, head=None):
    state = model.state_dict(prefix='backbone.')
    if head is not None:
        head.state_dict(destination=state, prefix='head.')
    return vit_weights(state)


def drawn(model):
    """A model whose every parameter differs from where it starts."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def rows(start, action):
    return {
        row['kind']: row
        for row in start.inventory.rows()
        if row['action'] == action
    }


def test_a_new_distillation_token_copies_the_class_token():
    source = weights_of(vit())
    model = target(with_dist_token=True)
    start = warm_start(source, model)
    assert torch.equal(model.dist_token, source.backbone['cls_token'])
    assert torch.equal(model.pos_embed[:, 0], model.pos_embed[:, 1])
    assert torch.equal(model.pos_embed[:, 1:], source.backbone['pos_embed'])
    made = rows(start, 'made')['distillation token and its position']
    assert (made['tensors'], made['parameters']) == (2, 2 * D)
    # Equal tokens see the same.
    with torch.no_grad():
        cls_token, dist_token = model(torch.rand(2, 3, 64, 64))[-1]
    torch.testing.assert_close(cls_token, dist_token)


@pytest.mark.parametrize(
    ('kwargs', 'dropped', 'positions'),
    [
        (dict(), ['distillation'], [0]),
        (
            dict(with_cls_token=False, out_type='featmap'),
            ['class', 'distillation'],
            [],
        ),
    ],
)
def test_class_tokens_that_the_target_has_not_go_with_their_positions(
    kwargs, dropped, positions
):
    source = weights_of(vit(with_dist_token=True))
    model = target(**kwargs)
    start = warm_start(source, model)
    kept = [*positions, *range(2, 18)]
    wanted = source.backbone['pos_embed'][:, kept]
    assert torch.equal(model.pos_embed, wanted)
    for name in dropped:
        row = rows(start, 'dropped')[f'{name} token and its position']
        assert row['parameters'] == 2 * D


def test_class_tokens_that_only_the_target_has_stay():
    source = vit(with_cls_token=False, out_type='featmap')
    model = target()
    before = model.cls_token.clone(), model.pos_embed[:, :1].clone()
    start = warm_start(weights_of(source), model)
    assert torch.equal(model.cls_token, before[0])
    assert torch.equal(model.pos_embed[:, :1], before[1])
    assert torch.equal(model.pos_embed[:, 1:], source.pos_embed)
    assert 'class tokens' in rows(start, 'made')


def test_positions_are_resized_as_mmpretrain_resizes_them():
    source = vit()
    larger = VisionTransformer(ARCH, img_size=96)
    missing, _ = larger.load_state_dict(source.state_dict())
    assert not missing
    model = target(img_size=96)
    warm_start(weights_of(source), model)
    torch.testing.assert_close(model.pos_embed, larger.pos_embed)


def test_a_grid_that_is_no_square_needs_a_checkpoint_that_tells_it():
    state = vit(img_size=(32, 96)).state_dict()
    model, wanted = target(img_size=(64, 96)), vit(img_size=(64, 96))
    warm_start(vit_weights(state), model)
    wanted.load_state_dict(state)
    assert torch.equal(model.pos_embed, wanted.pos_embed)
    with pytest.raises(UsageError, match='12 are not a grid of 3 x 3 patches'):
        warm_start(vit_weights(dict(state)), model)


@pytest.mark.parametrize(
    ('of_source', 'of_target', 'carried', 'made'),
    [
        (VisionTransformerClsHead, VisionTransformerClsHead, 1, 0),
        (DeiTClsHead, DeiTClsHead, 2, 0),
        (DeiTClsHead, VisionTransformerClsHead, 1, 0),
        (VisionTransformerClsHead, DeiTClsHead, 1, 1),
    ],
)
def test_heads_of_the_same_classes_are_carried(
    of_source, of_target, carried, made
):
    before, head = (
        drawn(cls(num_classes=7, in_channels=D))
        for cls in (of_source, of_target)
    )
    start = warm_start(weights_of(vit(), before), target(), head)
    assert torch.equal(head.layers.head.weight, before.layers.head.weight)
    if of_target is DeiTClsHead:
        last = 'head_dist' if of_source is DeiTClsHead else 'head'
        wanted = getattr(before.layers, last)
        assert torch.equal(head.layers.head_dist.weight, wanted.weight)
    for name, value in head.state_dict().items():
        assert torch.equal(start.state_dict[f'head.{name}'], value)
    assert rows(start, 'carried')['head']['tensors'] == 2 * carried
    copied = rows(start, 'made').get('head of the distillation token')
    assert (copied['tensors'] if copied else 0) == 2 * made
    dropped = rows(start, 'dropped').get('head')
    lost = len(before.state_dict()) - 2 * carried
    assert (dropped['tensors'] if dropped else 0) == lost


@pytest.mark.parametrize(
    ('kwargs', 'note'),
    [
        (
            dict(num_classes=9),
            'layers.head.weight is (7, 32), (9, 32) in the model',
        ),
        (
            dict(num_classes=7, hidden_dim=D),
            'it has no layers.pre_logits.weight, layers.pre_logits.bias',
        ),
    ],
)
def test_other_heads_are_dropped_as_a_whole(kwargs, note):
    before = VisionTransformerClsHead(num_classes=7, in_channels=D)
    head = drawn(VisionTransformerClsHead(in_channels=D, **kwargs))
    weight = head.layers.head.weight.clone()
    start = warm_start(weights_of(vit(), before), target(), head)
    assert torch.equal(head.layers.head.weight, weight)
    assert not any(name.startswith('head') for name in start.state_dict)
    assert rows(start, 'dropped')['head']['note'] == note
