"""One set of anchors does what a set for each head does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorformer_mm.conversion import share_anchors


def case(h, m, d, seed=0, rank=None):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    centroids = draw(h, m, d)
    if rank is not None:
        # Of this rank over all heads together, beside an offset of each.
        centroids = (draw(m, rank) @ draw(rank, h * d)).view(m, h, d)
        centroids = centroids.transpose(0, 1) + draw(h, 1, d)
    return centroids, draw(h, d, h * d), draw(h, 11, d)


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
    centroids, weight, keys = case(h, m, d, seed)
    shared = share_anchors(centroids, weight)
    assert shared.anchors.shape == (m, d)
    assert shared.residual < 1e-12
    rebased = keys @ shared.bases.transpose(-2, -1)
    torch.testing.assert_close(
        similarities(shared.anchors, rebased),
        similarities(centroids, keys),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize(('h', 'm', 'd'), [(1, 1, 4), (3, 4, 8), (3, 30, 8)])
def test_the_key_projection_keeps_its_norm_and_its_rank(h, m, d):
    centroids, weight, _ = case(h, m, d)
    shared = share_anchors(100 * centroids, weight)
    rebased = shared.bases @ weight
    torch.testing.assert_close(rebased.norm(), weight.norm())
    assert (torch.linalg.matrix_rank(shared.bases) == d).all()


def test_anchors_of_low_rank_are_exact_however_many():
    centroids, weight, _ = case(h=3, m=40, d=6, rank=6)
    assert share_anchors(centroids, weight).residual < 1e-12


def test_more_anchors_get_the_best_fit_and_its_residual():
    centroids, weight, _ = case(h=3, m=40, d=6)
    shared = share_anchors(centroids, weight)
    centred = centroids - centroids.mean(dim=1, keepdim=True)
    error = (shared.anchors @ shared.bases - centred).norm()
    torch.testing.assert_close(
        torch.tensor(shared.residual).double(),
        error / centred.norm(),
        rtol=1e-6,
        atol=0,
    )
    # Nothing of rank 6 comes nearer (Eckart and Young).
    values = torch.linalg.svdvals(torch.cat(tuple(centred), dim=1))
    torch.testing.assert_close(error, values[6:].norm())
    assert 0.1 < shared.residual < 1


def test_equal_anchors_stay_equal():
    centroids = torch.ones(2, 5, 4)
    shared = share_anchors(centroids, case(2, 5, 4)[1])
    assert shared.residual == 0
    assert torch.equal(shared.anchors, torch.zeros(5, 4).double())


def test_every_channel_can_learn():
    """Where anchors are zero keys are not: else no gradient would come."""
    centroids, weight, _ = case(h=2, m=3, d=8)
    shared = share_anchors(centroids, weight)
    empty = shared.anchors.abs().sum(dim=0) == 0
    assert empty.sum() == 6
    assert ((shared.bases @ weight).norm(dim=-1) > 0.1).all()
