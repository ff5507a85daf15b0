"""Anchors are centroids of the queries of a ViT on some images."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config

from anchorformer_mm.conversion.anchors import (
    cluster_queries,
    collect_queries,
    find_images,
    image_batches,
    reading_anchors,
    share_anchors,
)
from anchorformer_mm.models import AnchorFormer
from anchorformer_mm.utils.errors import UsageError

D, HEADS = 32, 2
ARCH = dict(
    embed_dims=D, num_layers=2, num_heads=HEADS, feedforward_channels=48
)


def vit():
    model = AnchorFormer(ARCH, img_size=64, attention='vanilla').eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


# Queries.


def both_by_hand(model, images):
    """Queries and keys of all tokens, layer by layer, (2, h, B n, d)."""
    x, hw = model.patch_embed(images)
    x = torch.cat((model.cls_token.expand(len(x), -1, -1), x), dim=1)
    x = x + model.pos_embed
    found = []
    for layer in model.layers:
        both = layer.attn.qkv(layer.ln1(x))[..., : 2 * D]
        both = both.reshape(-1, 2, HEADS, D // HEADS)
        found.append(both.permute(1, 2, 0, 3))
        x = layer(x, hw)
    return found


def rows(x):
    """The rows of a matrix in an order of their own."""
    return x[x[:, 0].argsort()]


@torch.no_grad()
def test_queries_are_those_of_all_layers():
    model = vit()
    images = torch.randn(5, 3, 64, 64)
    found = collect_queries(model, images.split(2), tokens_per_image=999)
    for ours, wanted in zip(found, both_by_hand(model, images), strict=True):
        assert ours.shape == (2, HEADS, 5 * 17, D // HEADS)
        for of_head, other in zip(
            ours.flatten(0, 1), wanted.flatten(0, 1), strict=True
        ):
            torch.testing.assert_close(rows(of_head), rows(other))
    assert not any(m._forward_hooks for m in model.modules())


@torch.no_grad()
def test_queries_of_some_tokens_are_of_the_same_in_all_layers():
    model = vit()
    images = torch.randn(3, 3, 64, 64)
    every = both_by_hand(model, images)
    some = collect_queries(model, [images], tokens_per_image=4, seed=1)
    # The class token's query in the first layer is that of all images, so
    # that only the last layer tells which were chosen.
    chosen = torch.cdist(some[1][0, 0], every[1][0, 0]).argmin(dim=1)
    assert len(chosen.unique()) == 12
    # Four tokens of each image, in the order of the images.
    assert torch.equal(chosen // 17, torch.arange(3).repeat_interleave(4))
    for q, wanted in zip(some, every, strict=True):
        torch.testing.assert_close(q, wanted[:, :, chosen])
    again = collect_queries(model, [images], tokens_per_image=4, seed=1)
    other = collect_queries(model, [images], tokens_per_image=4, seed=2)
    assert torch.equal(again[1], some[1])
    assert not torch.equal(other[1], some[1])


@pytest.mark.smoke
def test_anchors_are_the_centroids_of_each_head():
    centres = 10 * torch.randn(2, 5, 1, 4)
    queries = (centres + 0.1 * torch.randn(2, 5, 30, 4)).flatten(1, 2)
    anchors = cluster_queries(queries, num_anchors=5, seed=0)
    assert anchors.shape == (2, 5, 4)
    means = queries.unflatten(1, (5, 30)).mean(dim=2)
    for i in range(2):
        torch.testing.assert_close(rows(anchors[i]), rows(means[i]))
    assert torch.equal(anchors, cluster_queries(queries, 5, seed=0))


@pytest.mark.parametrize(
    ('queries', 'different'),
    [(torch.randn(2, 4, 3), 4), (torch.ones(2, 40, 3), 1)],
)
def test_too_few_queries_are_refused(queries, different):
    with pytest.raises(UsageError, match=f'5 anchors .* {different}: give'):
        cluster_queries(queries, num_anchors=5, seed=0)


# Images.

PREPROCESSOR = dict(mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True)


def config(*transforms, **kwargs):
    """Of a classifier that is not looked at."""
    load, pack = dict(type='LoadImageFromFile'), dict(type='PackInputs')
    dataset = dict(type='NoSuchDataset', pipeline=[load, *transforms, pack])
    return Config(
        dict(
            default_scope='mmpretrain',
            model=dict(type='NoSuchModel'),
            test_dataloader=dict(dataset=dataset),
            **kwargs,
        )
    )


@pytest.fixture
def folder(tmp_path):
    """Seven images of one colour each, in folders of two depths."""
    for i in range(7):
        path = tmp_path / ('a' if i % 2 else 'b/c') / f'{i}.PNG'
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.empty((20 + i, 30, 3), np.uint8)
        image[:] = (10 * i, 100, 200)  # B, G, R
        cv2.imwrite(str(path), image)
    (tmp_path / 'a' / 'labels.txt').write_text('0')
    return tmp_path


def test_images_are_chosen_by_the_seed_alone(folder):
    every = find_images(folder, 99)
    assert len(every) == 7
    some = find_images(folder, 3, seed=1)
    assert some == find_images(folder, 3, seed=1)
    assert len(some) == 3 and set(some) < set(every)
    assert any(find_images(folder, 3, seed=s) != some for s in range(2, 9))


@pytest.mark.parametrize(
    ('preprocessor', 'channels'),
    [
        (dict(to_rgb=False), (0, 100, 200)),
        (dict(to_rgb=True), (200, 100, 0)),
        (
            dict(type='mmdet.DetDataPreprocessor', bgr_to_rgb=True),
            (200, 100, 0),
        ),
        (dict(mean=[100, 0, 0], std=[10, 2, 1], to_rgb=True), (10, 50, 0)),
    ],
)
@pytest.mark.parametrize('of_model', [False, True])
def test_images_have_the_size_and_normalisation_of_the_config(
    folder, preprocessor, channels, of_model
):
    cfg = config(dict(type='Resize', scale=(48, 32)))
    (cfg.model if of_model else cfg).data_preprocessor = preprocessor
    paths = sorted(find_images(folder, 99), key=lambda path: path.name)
    batches = list(image_batches(cfg, paths))
    assert [batch.shape for batch in batches] == [(1, 3, 32, 48)] * 7
    expected = torch.tensor(channels).float()[:, None, None]
    assert torch.equal(batches[0][0], expected.expand(3, 32, 48))


def test_images_that_cannot_be_used_are_refused(tmp_path):
    cfg = config(data_preprocessor=PREPROCESSOR)
    with pytest.raises(UsageError, match=str(tmp_path)):
        find_images(tmp_path, 3)
    (tmp_path / 'a.png').write_bytes(b'no image')
    with pytest.raises(UsageError, match=r'a\.png'):
        list(image_batches(cfg, find_images(tmp_path, 3)))
    with pytest.raises(UsageError, match='data_preprocessor'):
        image_batches(config(), ['nowhere.png'])
    del cfg.test_dataloader.dataset.pipeline
    with pytest.raises(UsageError, match=r'test_dataloader\.dataset\.pip'):
        image_batches(cfg, ['nowhere.png'])


# One set of anchors does what a set for each head does.


def case(h, m, d, seed=0, rank=None):
    """Centroids, key projections and keys of h heads."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    anchors = draw(h, m, d)
    if rank is not None:
        # Of this rank over all heads together, beside an offset of each.
        anchors = (draw(m, rank) @ draw(rank, h * d)).view(m, h, d)
        anchors = anchors.transpose(0, 1) + draw(h, 1, d)
    return anchors, draw(h, d, h * d), draw(h, 11, d)


def similarities(anchors, keys):
    """Centred over anchors: a softmax does not see the rest."""
    s = keys @ anchors.transpose(-2, -1)
    return s - s.mean(dim=-1, keepdim=True)


@pytest.mark.smoke
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(2, 9), st.data(), st.integers(0, 99))
def test_similarities_are_the_same_up_to_one_anchor_more_than_channels(
    h, d, data, seed
):
    m = data.draw(st.integers(1, d + 1))
    own, weight, keys = case(h, m, d, seed)
    anchors, bases, residual = share_anchors(own, weight)
    assert anchors.shape == (m, d) and residual < 1e-12
    torch.testing.assert_close(
        similarities(anchors, keys @ bases.transpose(-2, -1)),
        similarities(own, keys),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize(('h', 'm', 'd'), [(1, 1, 4), (3, 4, 8), (3, 30, 8)])
def test_the_key_projection_keeps_its_norm_and_its_rank(h, m, d):
    own, weight, _ = case(h, m, d)
    anchors, bases, _ = share_anchors(100 * own, weight)
    torch.testing.assert_close((bases @ weight).norm(), weight.norm())
    assert (torch.linalg.matrix_rank(bases) == d).all()
    # Where anchors are zero keys are not: else no gradient would come.
    assert (anchors.abs().sum(dim=0) == 0).sum() == max(d - m + 1, 0)
    assert ((bases @ weight).norm(dim=-1) > 0.1).all()


def test_more_anchors_get_the_best_fit_and_its_residual():
    own, weight, _ = case(h=3, m=40, d=6)
    anchors, bases, residual = share_anchors(own, weight)
    centred = own - own.mean(dim=1, keepdim=True)
    error = (anchors @ bases - centred).norm()
    assert residual == pytest.approx(float(error / centred.norm()))
    # Nothing of rank 6 comes nearer (Eckart and Young).
    values = torch.linalg.svdvals(torch.cat(tuple(centred), dim=1))
    torch.testing.assert_close(error, values[6:].norm())
    assert 0.1 < residual < 1
    own, weight, _ = case(h=3, m=40, d=6, rank=6)
    assert share_anchors(own, weight)[2] < 1e-12


def test_equal_anchors_stay_equal():
    anchors, _, residual = share_anchors(torch.ones(2, 5, 4), case(2, 5, 4)[1])
    assert residual == 0
    assert torch.equal(anchors, torch.zeros(5, 4).double())


def test_anchors_are_read_by_keys_as_by_queries():
    """Exactly but for means and norm, where keys tell the queries."""
    anchors, _, keys = case(h=2, m=5, d=4)
    queries = keys @ case(h=2, m=4, d=4, seed=1)[0] + 3
    found = reading_anchors(anchors, queries, keys)
    torch.testing.assert_close(
        found.norm(dim=(1, 2)), anchors.norm(dim=(1, 2))
    )
    q, k, c = (t - t.mean(1, keepdim=True) for t in (queries, keys, anchors))
    ours, theirs = k @ found.mT, q @ c.mT
    ratio = (ours / theirs).mean((1, 2), keepdim=True)
    assert (ratio > 0).all()
    torch.testing.assert_close(ours, ratio * theirs)
