"""Weights of the authors' releases and of timm, beside their own equations.

A function is an original's forward pass on one image, by its own names.
"""

import pytest
import torch
from mmpretrain.models import DeiTClsHead, LinearClsHead
from mmpretrain.models import VisionTransformerClsHead as ViTHead
from torch.nn import functional as F

from anchorformer_mm.conversion.release import convert_release
from anchorformer_mm.models import AnchorFormer, ClusTR, LCNet
from anchorformer_mm.utils.errors import UsageError

D, HEADS, M, CLASSES = 24, 3, 5, 7
DIMS, DEPTHS, RATIOS = (8, 16, 16, 32), (1, 2, 1, 1), (8, 4, 2, 1)


class Weights(dict):
    """A state dict whose weights are drawn when they are first asked for."""

    def draw(self, name, *shape, mean=0.0):
        if name not in self:
            self[name] = mean + torch.randn(shape).double() / 3
        return self[name]

    def linear(self, name, x, out, bias=True):
        y = x @ self.draw(f'{name}.weight', out, x.shape[-1]).T
        return y + self.draw(f'{name}.bias', out) if bias else y

    def norm(self, name, x, eps):
        weight = self.draw(f'{name}.weight', x.shape[-1], mean=1)
        bias = self.draw(f'{name}.bias', x.shape[-1])
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    def conv(self, name, x, out, k, stride, pad, groups=1):
        weight = self.draw(f'{name}.weight', out, len(x) // groups, k, k)
        bias = self.draw(f'{name}.bias', out)
        return F.conv2d(x, weight, bias, stride, pad, groups=groups)


def anchor_attention(w, name, x):
    """Of tokens (n, D): A (1 / mass of the anchors) A^T V of each head."""
    k, v = w.linear(f'{name}.x_to_emb', x, 2 * D, bias=False).chunk(2, dim=1)
    mixed = []
    for key, value in zip(k.chunk(HEADS, 1), v.chunk(HEADS, 1), strict=True):
        a = w.linear(f'{name}.dist_anchor_B', key, M, bias=False)
        a = (a * (D // HEADS) ** -0.5).exp()
        a = a / a.sum(1, keepdim=True)
        mixed.append(a @ torch.diag(1 / a.sum(0)) @ (a.T @ value))
    return w.linear(f'{name}.to_out.0', torch.cat(mixed, 1), D)


def anchor_blocks(w, x, norm1, attn, norm2, fc1, fc2, eps):
    for i in range(2):
        y = w.norm(norm1.format(i), x, eps)
        x = x + anchor_attention(w, attn.format(i), y)
        y = w.norm(norm2.format(i), x, eps)
        y = F.gelu(w.linear(fc1.format(i), y, 48))
        x = x + w.linear(fc2.format(i), y, D)
    return x


def anchor_deit(w, image):
    """Distilled: patches of 8 px, two class tokens, two classifiers."""
    patches = w.conv('patch_embed.proj', image, D, 8, 8, 0).flatten(1).T
    tokens = [w.draw(f'{n}_token', 1, 1, D)[0] for n in ('cls', 'dist')]
    x = torch.cat((*tokens, patches))
    x = x + w.draw('pos_embed', 1, len(x), D)[0]
    parts = ('norm1', 'attn', 'norm2', 'mlp.fc1', 'mlp.fc2')
    x = anchor_blocks(w, x, *('blocks.{}.' + part for part in parts), 1e-6)
    x = w.norm('norm', x, 1e-6)
    first = w.linear('head', x[0], CLASSES)
    return (first + w.linear('head_dist', x[1], CLASSES)) / 2


def anchor_vit(w, image):
    """The other one: patches are cut out, and norms have another eps."""
    cut = [band.split(8, 2) for band in image.split(8, 1)]
    patches = [p.permute(1, 2, 0).flatten() for band in cut for p in band]
    x = w.linear('to_patch_embedding.1', torch.stack(patches), D)
    x = torch.cat((w.draw('cls_token', 1, 1, D)[0], x))
    x = x + w.draw('pos_embedding', 1, len(x), D)[0]
    parts = ('0.norm', '0.fn', '1.norm', '1.fn.net.0', '1.fn.net.3')
    names = ('transformer.layers.{}.' + part for part in parts)
    x = anchor_blocks(w, x, *names, 1e-5)
    return w.linear('mlp_head.1', w.norm('mlp_head.0', x[0], 1e-5), CLASSES)


def clustr(w, x):
    """Without the noise that breaks ties."""
    for i, (dim, ratio) in enumerate(zip(DIMS, RATIOS, strict=True), 1):
        sizes = (7, 4, 3) if i == 1 else (3, 2, 1)
        x = w.conv(f'patch_embed{i}.proj', x, dim, *sizes)
        hw = x.shape[1:]
        x = w.norm(f'patch_embed{i}.norm', x.flatten(1).T, 1e-5)
        for name in (f'block{i}.{j}' for j in range(DEPTHS[i - 1])):
            y = w.norm(f'{name}.norm1', x, 1e-6)
            x = x + cluster_attention(w, f'{name}.attn', y, ratio)
            y = w.norm(f'{name}.norm2', x, 1e-6)
            h = w.linear(f'{name}.mlp.fc1', y, 2 * dim)
            y = h.T.unflatten(1, hw)
            y = w.conv(f'{name}.mlp.dwconv.dwconv', y, len(y), 3, 1, 1, len(y))
            h = F.gelu(h + y.flatten(1).T)
            x = x + w.linear(f'{name}.mlp.fc2', h, dim)
        x = w.norm(f'norm{i}', x, 1e-6).T.unflatten(1, hw)
    return w.linear('head', x.mean((1, 2)), CLASSES)


def cluster_attention(w, name, x, ratio):
    dim = x.shape[1]
    q, total = w.linear(f'{name}.q', x, dim), 0
    # At this importance the 1e-6 of the release's sums is nothing.
    w.draw(f'{name}.weight_layer.bias', 1, mean=20) if ratio > 1 else None
    for key, scale in (('kv1', 1), ('kv2', 4)) if ratio > 1 else (('kv', 0),):
        merged = x
        if scale:
            p = w.linear(f'{name}.weight_layer', x, 1).exp()
            ids = clusters(x, scale * len(x) // ratio**2)
            members = F.one_hot(ids).to(x).T
            merged = members @ (x * p) / (members @ p + 1e-6)
        k, v = w.linear(f'{name}.{key}', merged, 2 * dim).chunk(2, dim=1)
        heads = zip(*(t.chunk(2, 1) for t in (q, k, v)), strict=True)
        heads = [F.scaled_dot_product_attention(*head) for head in heads]
        total = total + torch.cat(heads, 1)
    return w.linear(f'{name}.proj', total, dim)


def clusters(x, count):
    """The cluster of each token (n, D), by density peaks."""
    d = (x[:, None] - x).square().sum(-1).sqrt() / x.shape[1] ** 0.5
    density = (-d.topk(5, largest=False).values.square().mean(1)).exp()
    apart = d.where(density > density[:, None], d.max()).amin(1)
    centres = (density * apart).topk(count).indices
    ids = d[:, centres].argmin(1)
    ids[centres] = torch.arange(count)
    return ids


ARCH = dict(embed_dims=D, num_layers=2, num_heads=HEADS)
ARCH['feedforward_channels'] = 48
VIT = dict(arch=ARCH, img_size=32, patch_size=8, num_anchors=M)
DISTILLED = VIT | dict(with_dist_token=True)
EPS = dict(norm_cfg=dict(type='LN', eps=1e-5))
CLUSTR = dict(embed_dims=DIMS, num_heads=2, num_layers=DEPTHS, mlp_ratios=2)
LAST = dict(arch=CLUSTR, out_indices=(3,))
# Theirs and ours, with our head and its channels.
CASES = dict(
    deit=(anchor_deit, AnchorFormer, DISTILLED, DeiTClsHead, D),
    vit=(anchor_vit, AnchorFormer, VIT | EPS, ViTHead, D),
    clustr=(clustr, ClusTR, LAST, LinearClsHead, DIMS[-1]),
)


def released(case):
    """Images, and the scores and the weights of theirs."""
    side = 64 if case == 'clustr' else 32
    images, weights = torch.randn(2, 3, side, side).double(), Weights()
    scores = [CASES[case][0](weights, image).flatten() for image in images]
    return images, torch.stack(scores), weights


def ours(case, num_classes=CLASSES, **kwargs):
    _, backbone, cfg, head, channels = CASES[case]
    model = backbone(**cfg | kwargs), head(num_classes, channels)
    return tuple(part.double().eval() for part in model)


def scores_of(backbone, head, images):
    outs = backbone(images)
    if isinstance(backbone, ClusTR):
        outs = (outs[-1].mean((2, 3)),)
    return head(outs)


@pytest.mark.smoke
@pytest.mark.parametrize('case', CASES)
@torch.no_grad()
def test_the_function_stays_the_same(case):
    images, expected, state = released(case)
    # In another order, as a .safetensors file has it, and wrapped.
    state = {f'module.{name}': state[name] for name in sorted(state)}
    model = ours(case)
    loaded, inventory, _ = convert_release(dict(model=state), *model)
    found = scores_of(*model, images)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert expected.std() > 0.1
    assert len(loaded) == sum(len(m.state_dict()) for m in model)
    assert {row['action'] for row in inventory.rows()} == {'carried'}


# Blocks in the order of the forward pass, and the layers of a block.
OURS = ['stem.1', 'stem.2', 'stem.3', 'stages.0.0', 'stages.0.1']
OURS += [f'stages.1.{i}' for i in range(6)] + ['stages.2.0', 'stages.2.1']
STAGES = (1, 2, 2, 2, 4, 2)
TIMMS = [f'{i}.{j}' for i, n in enumerate(STAGES) for j in range(n)]
LAYERS = dict(conv_dw='depthwise_conv.conv', bn1='depthwise_conv.bn')
LAYERS |= dict(conv_pw='pointwise_conv.conv', bn2='pointwise_conv.bn')
LAYERS |= {'se.conv_reduce': 'se.1', 'se.conv_expand': 'se.3'}


def test_lcnet_of_timm_has_our_layers_in_other_stages():
    names = {'stem.0.conv': 'conv_stem', 'stem.0.bn': 'bn1'}
    for mine, other in zip(OURS, TIMMS, strict=True):
        for theirs, layer in LAYERS.items():
            names[f'{mine}.{layer}'] = f'blocks.{other}.{theirs}'
    wanted, state = {}, {'conv_head.weight': torch.rand(1280, 256, 1, 1)}
    for name, value in LCNet('0.5x').state_dict().items():
        layer, _, leaf = name.rpartition('.')
        if leaf != 'num_batches_tracked':  # some files have none
            wanted[f'backbone.{name}'] = torch.rand(value.shape)
            state[f'{names[layer]}.{leaf}'] = wanted[f'backbone.{name}']
    loaded, inventory, _ = convert_release(state, LCNet('0.5x'))
    assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)
    assert inventory.rows()[-1]['tensors'] == 1
    with pytest.raises(UsageError, match=r'conv_stem.*\(8, 3,.* \(16, 3'):
        convert_release(state, LCNet('1.0x'))
    with pytest.raises(UsageError, match="timm's LCNet, .* is AnchorFormer"):
        convert_release(state, *ours('deit'))


@torch.no_grad()
def test_other_sizes_and_classes_and_anchors_of_each_head():
    images, expected, state = released('deit')
    model = ours('deit', attn_cfg=dict(share_anchors=False))
    convert_release(state, *model)
    torch.testing.assert_close(scores_of(*model, images), expected)
    model = ours('deit', 9, img_size=48)
    loaded, inventory, _ = convert_release(state, *model)
    assert loaded['backbone.pos_embed'].shape == (1, 2 + 36, D)
    assert not [name for name in loaded if name.startswith('head.')]
    row = inventory.rows()[-1]
    assert (row['action'], row['kind']) == ('dropped', 'head')
    assert f'({CLASSES}, {D})' in row['note'] and f'(9, {D})' in row['note']


ANCHORS = 'blocks.0.attn.dist_anchor_B.weight'


@pytest.mark.parametrize(
    ('case', 'target', 'kwargs', 'change', 'words'),
    [
        # Of other sizes; with other layers.
        (
            *('deit', 'deit', dict(num_anchors=9), {}),
            rf'{ANCHORS} .*\(1, 5, 8\).* layers.0.attn.anchors .*\(1, 9, 8\)',
        ),
        ('vit', 'vit', dict(patch_size=16), {}, r'\(24, 192\).* 16, 16'),
        (
            *('deit', 'deit', dict(attention='vanilla'), {}),
            f'no place for .*{ANCHORS}.* has no layers.0.attn.qkv.weight',
        ),
        (
            'deit',
            'deit',
            {},
            {'norm.bias': None},
            'checkpoint has no ln1.bias',
        ),
        ('deit', 'deit', {}, {'pos_embed': torch.ones(1, 20, D)}, '20 tokens'),
        # The same weights are another function.
        ('vit', 'vit', dict(norm_cfg=None), {}, r'\[1e-05\].* \[1e-06\]'),
        # Of none of these.
        ('deit', 'deit', {}, {ANCHORS: None}, 'keys: patch_.* deit_to_'),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_by_both_names(
    case, target, kwargs, change, words
):
    state = released(case)[2] | change
    with pytest.raises(UsageError, match=f'^.*{words}.*$'):
        convert_release(state, *ours(target, **kwargs))
