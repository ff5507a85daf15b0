"""Anchors and clusters, as the layers had them, on the right pixels."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from anchorformer_mm.analysis import layer_maps
from anchorformer_mm.analysis.anchor_state import anchor_figures
from anchorformer_mm.analysis.layer_maps import (
    AnchorWeights,
    TokenClusters,
    choose_layers,
    collect_anchor_weights,
    collect_clusters,
    covered_size,
    draw_anchor_maps,
    draw_assignment,
    enlarge,
    maps_of,
)
from anchorformer_mm.apis import PreparedImage
from anchorformer_mm.models import AnchorFormer, ClusTR
from anchorformer_mm.models.layers import (
    AnchorAttention,
    ClusterAttention,
    SelfAttention,
)
from anchorformer_mm.registry import MODELS
from anchorformer_mm.utils.errors import UsageError


def anchorformer(num_layers=2, **kwargs):
    arch = dict(embed_dims=8, num_heads=2, feedforward_channels=16)
    arch['num_layers'] = num_layers
    return AnchorFormer(
        arch, img_size=(24, 48), patch_size=8, num_anchors=5, **kwargs
    ).eval()


def clustr(num_layers=(1, 1, 1, 1), **kwargs):
    arch = dict(
        embed_dims=(16, 16, 32, 32),
        num_heads=(1, 1, 2, 2),
        num_layers=num_layers,
        mlp_ratios=(2, 2, 2, 2),
    )
    return ClusTR(arch, **kwargs).eval()


def weights_of(weights, grid):
    """What is kept of a layer with tied A, (B, h, n, m)."""
    logits = weights.clamp(min=1e-9).log()
    figures = anchor_figures(logits, weights, logits.softmax(-2))
    return AnchorWeights('attn', weights, grid, figures)


def grey_image(size, padded):
    pixels = np.full((*size, 3), 128, np.uint8)
    return PreparedImage(pixels, torch.zeros(1, 3, *padded), [])


def test_anchors_go_before_clusters():
    kinds = SelfAttention, AnchorAttention, ClusterAttention
    vanilla, anchors, clusters = (kind(8, 2) for kind in kinds)
    assert maps_of(nn.Sequential(vanilla, clusters)) == 'clusters'
    assert maps_of(nn.Sequential(clusters, anchors)) == 'anchors'
    with pytest.raises(UsageError, match='neither anchors nor clusters'):
        maps_of(nn.Sequential(vanilla, nn.ReLU()))


@pytest.mark.parametrize(
    ('attention', 'attn_cfg'),
    [
        ('learned', dict(anchor_std=1.0)),
        ('learned', dict(anchor_std=1.0, share_anchors=False)),
        ('query', dict(select='norm')),
    ],
)
def test_a_is_that_of_equation_4_in_every_layer(attention, attn_cfg):
    model = anchorformer(attention=attention, attn_cfg=attn_cfg).double()
    inputs, images = {}, torch.rand(3, 3, 24, 48).double()
    with register_module_forward_pre_hook(inputs.__setitem__):
        found = collect_anchor_weights(model, images)
    names = [made.name for made in found]
    assert names == ['layers.0.attn', 'layers.1.attn']
    for made in found:
        layer = model.get_submodule(made.name)
        x = inputs[layer][0]
        with torch.no_grad():
            keys = (x @ layer.kv.weight[:8].T).view(3, 19, 2, 4)
            anchors = layer.anchors_of(x).expand(3, 2, 5, 4)
            similar = torch.einsum('bnhd,bhmd->bhnm', keys, anchors) / 4**0.5
            expected = similar.exp() / similar.exp().sum(-1, keepdim=True)
        assert made.weights.dtype == torch.float64
        torch.testing.assert_close(made.weights, expected)
        assert made.grid == (3, 6)


def test_maps_are_those_of_the_patches_after_the_class_token():
    weights = torch.rand(2, 3, 13, 5).softmax(-1)
    layer = weights_of(weights, (3, 4))
    for j, i, y, x in [(0, 0, 0, 0), (4, 1, 2, 1), (2, 0, 1, 3)]:
        expected = weights[i, 2, 1 + 4 * y + x, j].item()
        assert layer.maps(2, i)[j, y, x] == pytest.approx(expected)
    np.testing.assert_allclose(
        layer.maps(), np.mean([layer.maps(h) for h in range(3)], 0), rtol=1e-5
    )
    with pytest.raises(UsageError, match='heads of attn are 0 to 2, got 3'):
        layer.maps(3)


@pytest.mark.parametrize(
    ('model', 'collect'),
    [(anchorformer, collect_anchor_weights), (clustr, collect_clusters)],
)
def test_the_model_is_left_as_it_was_also_after_an_error(model, collect):
    model = model().train()
    before = pickle.dumps(model)
    collect(model, torch.rand(1, 3, 24, 48))
    assert pickle.dumps(model) == before
    with pytest.raises(RuntimeError):
        collect(model, torch.rand(1, 4, 24, 48))
    assert pickle.dumps(model) == before


@pytest.mark.parametrize(
    ('kind', 'arch', 'grids'),
    [
        ('AnchorESNet', '0.75x', 2 * [(2, 3)]),
        ('AnchorLeViT', '128s', 3 * [(4, 6)] + 4 * [(2, 3)] + 4 * [(1, 2)]),
    ],
)
def test_every_attention_of_a_backbone_has_maps(kind, arch, grids):
    model = MODELS.build(dict(type=f'anchorformer_mm.{kind}', arch=arch))
    found = collect_anchor_weights(model.eval(), torch.rand(1, 3, 64, 96))
    assert [layer.grid for layer in found] == grids
    assert all(layer.maps().shape[1:] == layer.grid for layer in found)


@pytest.mark.parametrize('window_size', [56, 5])
def test_clusters_are_those_that_the_attention_goes_on_with(window_size):
    model = clustr(window_size=window_size)
    inputs = {}
    with register_module_forward_pre_hook(inputs.__setitem__):
        found = collect_clusters(model, torch.rand(2, 3, 50, 70))
    names = [f'stages.{i}.blocks.0.attn' for i in range(3)]
    assert [clusters.name for clusters in found] == names
    assert [clusters.grid for clusters in found] == [(13, 18), (7, 9), (4, 5)]
    for clusters in found:
        layer = model.get_submodule(clusters.name)
        made = layer.cluster(*inputs[layer])
        expected = dict(zip((1, 4), made, strict=True))
        torch.testing.assert_close(clusters.scales, expected, rtol=0, atol=0)
    assert found[2].at(1)[1] == 5
    assert found[2].at(4) is None


@pytest.mark.parametrize(
    ('attention', 'collect', 'kind'),
    [
        (AnchorAttention, collect_anchor_weights, 'anchors'),
        (ClusterAttention, collect_clusters, 'clusters'),
    ],
)
def test_layers_that_have_nothing_to_show_are_told(attention, collect, kind):
    tokens = torch.rand(1, 6, 8)
    with pytest.raises(UsageError, match=f'no layer .* {kind}'):
        collect(SelfAttention(8, 2), tokens)
    with pytest.raises(UsageError, match='0 was run without hw_shape'):
        collect(nn.Sequential(attention(8, 2)), tokens)
    model = nn.Identity()
    model.unused = attention(8, 2)
    with pytest.raises(UsageError, match='none of the 1 layers'):
        collect(model, tokens)


def test_layers_are_chosen_by_their_number():
    x = torch.rand(1, 3, 24, 48)
    anchors = collect_anchor_weights(anchorformer(num_layers=3), x)
    assert choose_layers(anchors) == dict(enumerate(anchors))
    assert choose_layers(anchors, [2, 0]) == {2: anchors[2], 0: anchors[0]}
    with pytest.raises(UsageError, match=r'0 to 2, layers.0.attn .*; got 3'):
        choose_layers(anchors, [0, 3])
    clusters = collect_clusters(clustr((2, 1, 3, 1)), x)
    # The last of each stage; the last stage has none.
    assert list(choose_layers(clusters)) == [1, 2, 5]


def test_scales_are_those_of_the_layer():
    layer = TokenClusters('attn', {2: (torch.zeros(1, 6), 3), 8: None}, (2, 3))
    assert layer.at() == layer.at(2) == layer.scales[2]
    with pytest.raises(UsageError, match='scales of attn are 2, 8; got 4'):
        layer.at(4)


@pytest.mark.parametrize('draw', [draw_anchor_maps, draw_assignment])
@pytest.mark.parametrize(
    ('logits', 'flat'),
    [
        # Uniform but for noise; one anchor for all tokens; different ones.
        (0.01 * torch.rand(16, 30), True),
        (30 * torch.eye(30)[[3] * 16], True),
        (30 * torch.eye(30)[:16], False),
    ],
)
def test_noise_is_flat_and_anchors_without_use_are_named(
    draw, logits, flat, monkeypatch
):
    drawn = []
    monkeypatch.setattr(
        layer_maps, 'draw_panels', lambda rows, *a, **k: drawn.extend(*rows)
    )
    layer = weights_of(logits[None, None].softmax(-1), (4, 4))
    draw(grey_image((64, 64), (64, 64)), {0: layer}, 'a.png')
    assert (drawn[1].image.std(axis=(0, 1)).max() < 3) == flat
    titles = ' '.join(panel.title for panel in drawn)
    assert ('do not tell tokens apart' in titles) == flat


sides = st.integers(1, 90)


@given(st.tuples(sides, sides), st.sampled_from([4, 8, 16, 32]))
def test_cells_of_the_usual_strides_keep_their_size(size, stride):
    grid = tuple(-(-side // stride) for side in size)
    # One cell may have any size.
    assume(grid != (1, 1))
    assert covered_size(size, grid) == (grid[0] * stride, grid[1] * stride)


def test_cells_of_14_px_are_found_and_odd_ones_fill_the_image():
    assert covered_size((224, 308), (16, 22)) == (224, 308)
    assert covered_size((220, 308), (16, 22)) == (224, 308)
    assert covered_size((100, 100), (3, 10)) == (100, 100)


def test_a_cell_beyond_the_border_does_not_move_the_others():
    cells = np.zeros((7, 5), np.float32)
    cells[2, 3] = 1
    image = grey_image((97, 70), (100, 80))
    big = enlarge(cells, image, smooth=False)
    assert big.shape == (97, 70)
    assert big[32:48, 48:64].min() == 1
    assert big.sum() == 16 * 16
