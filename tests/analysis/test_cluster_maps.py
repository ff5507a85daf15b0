import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from anchorformer_mm.analysis import cluster_maps
from anchorformer_mm.analysis.cluster_maps import (
    TokenClusters,
    choose_cluster_layers,
    collect_clusters,
    draw_clusters,
    superpixels,
)
from anchorformer_mm.models import ClusTR
from anchorformer_mm.models.layers import ClusterAttention, SelfAttention
from anchorformer_mm.utils.errors import UsageError


def clustr(num_layers=(1, 1, 1, 1), **kwargs):
    arch = dict(
        embed_dims=(16, 16, 32, 32),
        num_heads=(1, 1, 2, 2),
        num_layers=num_layers,
        mlp_ratios=(2, 2, 2, 2),
    )
    return ClusTR(arch, **kwargs).eval()


def clusters_of(ids, count, grid, name='attn', scale=1):
    """One layer, at one scale."""
    ids = torch.tensor(ids).view(1, -1)
    return TokenClusters(name, {scale: (ids, count)}, grid)


@pytest.fixture
def drawn(monkeypatch):
    """Panels in place of a file: rows of them."""
    sheets = []
    monkeypatch.setattr(
        cluster_maps, 'draw_panels', lambda rows, path: sheets.append(rows)
    )

    def draw(*args, **kwargs):
        draw_clusters(*args, 'nowhere.png', **kwargs)
        return sheets.pop()

    return draw


@pytest.mark.parametrize('window_size', [56, 5])
def test_clusters_are_those_that_the_attention_goes_on_with(window_size):
    model = clustr(window_size=window_size)
    x = torch.rand(2, 3, 50, 70)
    given_ = []
    layers = [model.stages[i].blocks[0].attn for i in range(3)]
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: given_.append(args))
        for layer in layers
    ]
    found = collect_clusters(model, x)
    for hook in hooks:
        hook.remove()
    names = [f'stages.{i}.blocks.0.attn' for i in range(3)]
    assert [clusters.name for clusters in found] == names
    assert [clusters.grid for clusters in found] == [(13, 18), (7, 9), (4, 5)]
    for layer, args, clusters in zip(layers, given_, found, strict=True):
        expected = layer.cluster(*args)
        assert list(clusters.scales) == [1, 4]
        for made, again in zip(
            clusters.scales.values(), expected, strict=True
        ):
            assert (made is None) == (again is None)
            if made is not None:
                assert torch.equal(made[0], again[0])
                assert made[1] == again[1]
    assert found[2].at(1)[1] == 5
    assert found[2].at(4) is None


def state_of(model):
    """All that could be left behind in a model."""
    return [
        (name, module.training, sorted(vars(module)))
        for name, module in model.named_modules()
    ]


def test_the_model_is_left_as_it_was_also_after_an_error():
    model = clustr().train()
    x = torch.rand(1, 3, 40, 40)
    before, output = state_of(model), model(x)[3]
    collect_clusters(model, x)
    assert state_of(model) == before
    assert torch.equal(model(x)[3], output)
    with pytest.raises(RuntimeError):
        collect_clusters(model, torch.rand(1, 4, 40, 40))
    assert state_of(model) == before


def test_models_without_clusters_are_refused():
    with pytest.raises(UsageError, match='no layer of the model makes'):
        collect_clusters(SelfAttention(8, 2), torch.rand(1, 6, 8))


def test_tokens_without_a_shape_are_refused():
    attention = nn.Sequential(ClusterAttention(8, 2))
    with pytest.raises(UsageError, match='0 was run without hw_shape'):
        collect_clusters(attention, torch.rand(1, 6, 8))
    assert 'cluster' not in vars(attention[0])


def test_layers_that_do_not_run_are_told():
    model = nn.Identity()
    model.unused = ClusterAttention(8, 2)
    with pytest.raises(UsageError, match='none of the 1 layers'):
        collect_clusters(model, torch.rand(1, 6, 8))


def test_by_default_the_last_layer_of_each_stage_is_chosen():
    found = collect_clusters(clustr((2, 1, 3, 1)), torch.rand(1, 3, 32, 32))
    assert len(found) == 6
    assert choose_cluster_layers(found, None) == {
        i: found[i] for i in (1, 2, 5)
    }
    assert choose_cluster_layers(found, [3, 0]) == {3: found[3], 0: found[0]}
    with pytest.raises(
        UsageError, match=r'0 to 5, stages\.0.* to stages\.2.*; got 6'
    ):
        choose_cluster_layers(found, [0, 6])


def test_layers_that_are_in_no_list_are_stages_of_their_own():
    names = ['low.attn', 'high.attn', '0', '1']
    layers = [clusters_of([0], 1, (1, 1), name) for name in names]
    assert [layer.stage for layer in layers] == [
        'low.attn',
        'high.attn',
        '',
        '',
    ]
    assert list(choose_cluster_layers(layers, None)) == [0, 1, 3]


def test_scales_are_those_of_the_layer():
    layer = TokenClusters('attn', {2: (torch.zeros(1, 6), 3), 8: None}, (2, 3))
    assert layer.at() == layer.at(2) == layer.scales[2]
    with pytest.raises(UsageError, match='scales of attn are 2, 8; got 4'):
        layer.at(4)


@given(
    arrays.arrays(
        np.int32,
        st.tuples(*2 * [st.integers(1, 9)]),
        elements=st.integers(0, 5),
    ),
    st.integers(0, 2**32 - 1),
)
def test_regions_have_their_mean_colour_and_lines_between(ids, seed):
    shape = (*ids.shape, 3)
    image = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    # Every pixel becomes 5 x 5, one of which no line reaches.
    big = superpixels(image, ids, 5 * max(ids.shape))
    assert big.shape == (5 * len(ids), 5 * len(ids[0]), 3)
    for region in np.unique(ids):
        mean = image[ids == region].mean(axis=0)
        assert np.abs(big[2::5, 2::5][ids == region] - mean).max() <= 0.5
    # A line is at the end of a pixel, if its neighbour is of another region.
    across = (big[2::5, 4::5] != big[2::5, 2::5]).any(-1)[:, :-1]
    down = (big[4::5, 2::5] != big[2::5, 2::5]).any(-1)[:-1]
    np.testing.assert_array_equal(across, ids[:, :-1] != ids[:, 1:])
    np.testing.assert_array_equal(down, ids[:-1] != ids[1:])
    assert (big[-1, 2::5] == big[-3, 2::5]).all()


def test_lines_are_seen_on_black_and_on_white():
    image = np.zeros((1, 4, 3), np.uint8)
    image[:, 2:] = 255
    big = superpixels(image, np.array([[0, 1, 2, 3]], np.int32), 40)
    assert big[0, [9, 19, 29, 39], 0].tolist() == [85, 85, 170, 255]


def test_clusters_of_colours_are_drawn_in_them(tmp_path):
    # Red at the upper right.
    image = np.zeros((60, 90, 3), np.uint8)
    image[:32, 48:] = 255, 0, 0
    inputs = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    model = clustr(sr_ratios=4)
    (layer, *_) = collect_clusters(model, inputs)
    assert layer.grid == (15, 23)
    path = tmp_path / 'clusters.png'
    draw_clusters(image, {0: layer}, path)
    first = path.read_bytes()
    sheet = cv2.imread(str(path))[..., ::-1]
    # Three lines of title; 60 x 90 px become 224 x 336.
    assert sheet.shape == (8 + 48 + 224 + 8, 8 + 2 * 344, 3)
    picture = sheet[56:280, 352:688].astype(int)
    inside, outside = picture[20:80, 220:330], picture[150:220]
    assert inside[..., 0].mean() > outside[..., 0].mean() + 50
    draw_clusters(image, {0: collect_clusters(model, inputs)[0]}, path)
    assert path.read_bytes() == first


def test_what_was_padded_is_cut_off_and_not_counted(drawn):
    # 40 x 70 px, padded to 64 x 96: 4 x 6 tokens of 16 px.
    ids = np.zeros((4, 6), int)
    ids[1, 2] = 1
    ids[3:] = 2
    ids[:, 5] = 3
    layer = clusters_of(ids.ravel(), 7, (4, 6), 'stages.0.attn', scale=2)
    image = np.full((40, 70, 3), 100, np.uint8)
    image[16:32, 32:48] = 200
    ((_, panel),) = drawn(image, {4: layer}, input_size=(64, 96), cell=70)
    assert panel.title == (
        'layer 4, scale 2\nstages.0\n2 of 7 clusters, 4 x 6 tokens'
    )
    assert panel.image.shape == (40, 70, 3)
    assert (panel.image[17:31, 33:47] == 200).all()
    rest = panel.image[..., 0].copy()
    rest[15:33, 31:49] = 100
    assert (rest == 100).all()


def test_tokens_that_are_all_clusters_are_named_and_not_drawn(drawn):
    layer = TokenClusters(
        'attn', {1: (torch.zeros(1, 6, dtype=int), 1), 4: None}, (2, 3)
    )
    image = np.zeros((20, 30, 3), np.uint8)
    rows = drawn(image, {0: layer}, scales=[4, 1])
    assert [row[1].title.splitlines()[-1] for row in rows] == [
        'each of 2 x 3 tokens is a cluster',
        '1 of 1 clusters, 2 x 3 tokens',
    ]
    # Grey, of the size of the others.
    assert rows[0][1].image.shape == rows[1][1].image.shape
    assert [len(np.unique(row[1].image)) for row in rows] == [1, 1]
    assert rows[0][1].image.min() > 200
    assert rows[1][1].image.max() == 0


def test_long_rows_are_broken(drawn):
    layer = clusters_of([0, 1], 2, (1, 2))
    image = np.zeros((8, 16, 3), np.uint8)
    rows = drawn(image, dict.fromkeys(range(4), layer), columns=3)
    assert [len(row) for row in rows] == [3, 2]


def test_wrong_scales_are_refused_and_nothing_is_drawn(tmp_path):
    layer = clusters_of([0, 1], 2, (1, 2))
    image = np.zeros((8, 16, 3), np.uint8)
    with pytest.raises(UsageError, match='scales of attn are 1; got 3'):
        draw_clusters(image, {0: layer}, tmp_path / 'a.png', scales=[1, 3])
    assert list(tmp_path.iterdir()) == []
