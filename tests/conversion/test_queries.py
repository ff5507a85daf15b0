"""Anchors are centroids of a ViT's queries."""

import pytest
import torch

from anchorformer_mm.conversion import (
    cluster_queries,
    collect_queries,
    vanilla_model,
    vit_weights,
)
from anchorformer_mm.models import AnchorFormer
from anchorformer_mm.utils.errors import UsageError

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
CFG = dict(type='anchorformer_mm.AnchorFormer', arch=ARCH, img_size=64)


@pytest.fixture
def model():
    source = AnchorFormer(
        ARCH,
        img_size=64,
        attention='vanilla',
        attn_cfg=dict(qkv_bias=True),
    )
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vanilla_model(vit_weights(source.state_dict()), CFG)


@torch.no_grad()
def queries_by_hand(model, images):
    """Queries of all tokens, layer by layer, (h, B n, d)."""
    x, hw = model.patch_embed(images)
    x = torch.cat((model.cls_token.expand(len(x), -1, -1), x), dim=1)
    x = x + model.pos_embed
    found = []
    for layer in model.layers:
        attn = layer.attn
        q = attn.qkv(layer.ln1(x))[..., :16]
        found.append(q.reshape(-1, 2, 8).transpose(0, 1))
        x = layer(x, hw)
    return found


def rows(x):
    """The rows of a matrix in an order of their own."""
    return x[x[:, 0].argsort()]


def test_all_queries_of_all_layers_are_collected(model):
    images = torch.randn(5, 3, 64, 64)
    found = collect_queries(model, images.split(2), tokens_per_image=999)
    for q, wanted in zip(found, queries_by_hand(model, images), strict=True):
        assert q.shape == (2, 5 * 17, 8)
        for i in range(2):
            torch.testing.assert_close(rows(q[i]), rows(wanted[i]))


def test_a_part_of_the_tokens_is_the_same_in_all_layers(model):
    images = torch.randn(3, 3, 64, 64)
    every = queries_by_hand(model, images)
    some = collect_queries(model, [images], tokens_per_image=4, seed=1)
    # The class token's query in the first layer is that of all images, so
    # that only the last layer tells which were chosen.
    distance = (some[1][0, :, None] - every[1][0]).norm(dim=-1)
    chosen = distance.argmin(dim=1)
    assert len(chosen.unique()) == 12
    # Four tokens of each image, in the order of the images.
    assert torch.equal(chosen // 17, torch.arange(3).repeat_interleave(4))
    for q, wanted in zip(some, every, strict=True):
        torch.testing.assert_close(q, wanted[:, chosen])
    again = collect_queries(model, [images], tokens_per_image=4, seed=1)
    other = collect_queries(model, [images], tokens_per_image=4, seed=2)
    assert torch.equal(again[1], some[1])
    assert not torch.equal(other[1], some[1])


def test_the_model_is_left_as_it_was(model):
    collect_queries(model, [torch.randn(1, 3, 64, 64)], tokens_per_image=4)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.smoke
def test_anchors_are_the_centroids_of_each_head():
    centres = 10 * torch.randn(2, 5, 4)
    queries = (centres[:, :, None] + 0.1 * torch.randn(2, 5, 30, 4)).flatten(
        1, 2
    )
    anchors = cluster_queries(queries, num_anchors=5, seed=0)
    assert anchors.shape == (2, 5, 4)
    means = queries.unflatten(1, (5, 30)).mean(dim=2)
    for i in range(2):
        torch.testing.assert_close(rows(anchors[i]), rows(means[i]))
    assert torch.equal(anchors, cluster_queries(queries, 5, seed=0))


@pytest.mark.parametrize(
    ('queries', 'message'),
    [
        (torch.randn(2, 4, 3), '5 anchors .* the images have 4: give more'),
        (torch.ones(2, 40, 3), '5 anchors .* the 40 of these images repeat'),
    ],
)
def test_too_few_queries_are_refused(queries, message):
    with pytest.raises(UsageError, match=message):
        cluster_queries(queries, num_anchors=5, seed=0)
