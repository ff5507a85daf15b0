"""Position embeddings on other grids and with other class tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorformer_mm.models.layers import (
    fit_position_embedding,
    resize_position_embedding,
)

D = 4
CLS, DIST = 'cls_token', 'dist_token'
tokens = st.sampled_from([(), (CLS,), (DIST,), (CLS, DIST)])
sides = st.integers(1, 6)


def own_of(names):
    return {name: torch.randn(1, 1, D) for name in names}


@settings(max_examples=50, deadline=None)
@given(theirs=tokens, ours=tokens, h=sides, w=sides)
def test_class_tokens_are_found_dropped_or_kept_and_the_grid_goes_with_them(
    theirs, ours, h, w
):
    pos_embed = torch.randn(1, len(theirs) + h * w, D)
    own = own_of(ours)
    fitted = fit_position_embedding(pos_embed, theirs, own, (h, w), (h, w))
    assert fitted.shape == (1, len(ours) + h * w, D)
    for i, name in enumerate(ours):
        expected = own[name][0, 0]
        if name in theirs:
            expected = pos_embed[0, theirs.index(name)]
        assert torch.equal(fitted[0, i], expected)
    assert torch.equal(fitted[:, len(ours) :], pos_embed[:, len(theirs) :])


def test_the_grid_is_resized_and_class_tokens_are_not():
    pos_embed = torch.randn(1, 1 + 2 * 6, D)
    fitted = fit_position_embedding(
        pos_embed, [CLS], own_of([CLS]), [2, 6], (4, 3), mode='bilinear'
    )
    assert torch.equal(fitted[:, 0], pos_embed[:, 0])
    expected = resize_position_embedding(
        pos_embed[:, 1:], (2, 6), (4, 3), mode='bilinear'
    )
    assert torch.equal(fitted[:, 1:], expected)


def test_a_grid_that_the_checkpoint_does_not_tell_is_a_square():
    pos_embed = torch.randn(1, 2 + 9, D)
    fitted = fit_position_embedding(pos_embed, [CLS, DIST], {}, None, (3, 3))
    assert torch.equal(fitted, pos_embed[:, 2:])


def test_the_type_is_that_of_the_checkpoint():
    pos_embed = torch.randn(1, 4, D).half()
    fitted = fit_position_embedding(pos_embed, [], own_of([CLS]), None, (3, 3))
    assert fitted.dtype == torch.float16


@pytest.mark.parametrize(
    ('length', 'grid', 'message'),
    [
        (13, None, '13 tokens, 1 of them .* other 12 are not a grid of 3 x 3'),
        (13, (5, 2), 'other 12 are not a grid of 5 x 2 patches'),
        (1, None, 'other 0 are not a grid'),
        (0, None, 'other -1 are not a grid'),
    ],
)
def test_what_is_no_grid_is_refused(length, grid, message):
    pos_embed = torch.randn(1, length, D)
    with pytest.raises(ValueError, match=message):
        fit_position_embedding(pos_embed, [CLS], own_of([CLS]), grid, (3, 3))


def test_resizing_keeps_rows_and_columns_apart():
    rows = torch.arange(3.0).repeat_interleave(4)[None, :, None]
    grid = resize_position_embedding(rows, (3, 4), (6, 2), mode='bilinear')
    grid = grid.reshape(6, 2)
    assert (grid.diff(dim=0) >= 0).all() and grid[-1, 0] > grid[0, 0]
    assert torch.equal(grid[:, 0], grid[:, 1])
