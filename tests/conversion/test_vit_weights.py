"""The weights of a ViT are found in every kind of checkpoint."""

import pytest
import torch

from anchorformer_mm.conversion import sizes_of, vit_weights
from anchorformer_mm.models import AnchorFormer
from anchorformer_mm.utils.errors import UsageError

D, F = 8, 24
SIZES = dict(
    num_layers=2,
    embed_dims=D,
    feedforward_channels=F,
    patch_size=(16, 16),
    in_channels=3,
)

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
for i in range(2):
    for kind in ('weight', 'bias'):
        TIMM |= {
            f'blocks.{i}.{theirs}.{kind}': f'layers.{i}.{ours}.{kind}'
            for theirs, ours in (
                ('norm1', 'ln1'),
                ('attn.qkv', 'attn.qkv'),
                ('attn.proj', 'attn.proj'),
                ('norm2', 'ln2'),
                ('mlp.fc1', 'ffn.layers.0.0'),
                ('mlp.fc2', 'ffn.layers.1'),
            )
        }


@pytest.fixture
def weights():
    """Weights of a small distilled ViT under mmpretrain's names."""
    model = AnchorFormer(
        dict(embed_dims=D, num_layers=2, num_heads=2, feedforward_channels=F),
        img_size=32,
        attention='vanilla',
        attn_cfg=dict(qkv_bias=True),
        with_dist_token=True,
    )
    return dict(model.state_dict())


HEAD = {
    f'layers.{name}.{kind}': torch.rand(size)
    for name in ('head', 'head_dist')
    for kind, size in (('weight', (5, D)), ('bias', (5,)))
}
HEAD['layers.pre_logits.weight'] = torch.rand(D, D)


def timm(weights):
    state = {name: weights[ours] for name, ours in TIMM.items()}
    assert len(state) == len(weights)
    head = {n.removeprefix('layers.'): v for n, v in HEAD.items()}
    hidden = head.pop('pre_logits.weight')
    return state | head | {'pre_logits.fc.weight': hidden}


def mmpretrain(weights):
    state = {f'backbone.{name}': value for name, value in weights.items()}
    state |= {f'head.{name}': value for name, value in HEAD.items()}
    return state | {'neck.weight': torch.rand(3)}


FORMATS = dict(
    mmpretrain=lambda w: dict(state_dict=mmpretrain(w), meta=dict(epoch=3)),
    mmpretrain_bare=mmpretrain,
    backbone_only=lambda w: {**w, **{f'head.{n}': v for n, v in HEAD.items()}},
    deit=lambda w: dict(model=timm(w), epoch=300),
    timm=timm,
    timm_training=lambda w: dict(state_dict=timm(w), arch='deit'),
)


@pytest.mark.smoke
@pytest.mark.parametrize('name', FORMATS)
def test_every_format_gives_the_same_weights(weights, name):
    found = vit_weights(FORMATS[name](weights))
    assert set(found.backbone) == set(weights)
    for key, value in weights.items():
        assert found.backbone[key] is value
    assert set(found.head) == set(HEAD)
    assert all(found.head[key] is HEAD[key] for key in HEAD)
    assert set(found.other) == (
        {'neck.weight'} if 'mmpretrain' in name else set()
    )
    assert found.tokens == ('cls_token', 'dist_token')
    assert found.qkv_bias
    assert sizes_of(found.backbone) == SIZES


def test_the_grid_of_positions_is_kept_where_a_checkpoint_tells(weights):
    model = AnchorFormer('tiny', attention='vanilla', img_size=(32, 64))
    assert vit_weights(model.state_dict()).grid == [2, 4]
    prefixed = model.state_dict(prefix='backbone.')
    assert vit_weights(dict(state_dict=prefixed)).grid == [2, 4]
    assert vit_weights(weights).grid is None


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda w: {f'conv{i}.weight': torch.rand(1) for i in range(7)},
            'no ViT .* first keys: conv0.weight, conv1.weight, conv2.weight, '
            'conv3.weight, conv4.weight$',
        ),
        (lambda w: dict(epoch=3), 'first keys: epoch$'),
        (lambda w: dict(model=torch.rand(3)), 'first keys: model$'),
        (lambda w: {}, 'first keys: none$'),
        (
            lambda w: {n: v for n, v in w.items() if 's.1.ln2.b' not in n},
            'lacks layers.1.ln2.bias$',
        ),
        (
            lambda w: {**w, 'layers.0.gamma1.weight': torch.rand(D)},
            'no place for its layers.0.gamma1.weight$',
        ),
        (
            lambda w: {**w, 'layers.1.attn.proj.weight': torch.rand(D, 3)},
            r'layers.1.attn.proj.weight .* \(8, 8\), got \(8, 3\)$',
        ),
        (
            lambda w: {
                n: v for n, v in w.items() if n != 'layers.1.attn.qkv.bias'
            },
            'lacks layers.1.attn.qkv.bias$',
        ),
    ],
)
def test_what_is_no_whole_plain_vit_is_refused(weights, change, message):
    with pytest.raises(UsageError, match=message):
        vit_weights(change(weights))


def test_an_anchor_model_is_no_source():
    with pytest.raises(UsageError, match=r'no layers.0.attn.qkv.weight'):
        vit_weights(AnchorFormer('tiny').state_dict())
