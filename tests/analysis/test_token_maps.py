import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from anchorformer_mm.analysis.token_maps import (
    covered_size,
    enlarge,
    heat_overlay,
    to_map,
)

sides = st.integers(1, 90)


def grid_of(size, stride):
    return tuple(-(-side // stride) for side in size)


@given(st.tuples(sides, sides), st.integers(2, 32), st.integers(0, 2))
def test_tokens_of_any_image_are_laid_out_row_by_row(size, stride, extra):
    h, w = grid_of(size, stride)
    tokens = torch.arange(extra + h * w).view(1, -1, 1)
    laid_out = to_map(tokens, size, extra)
    assert laid_out.shape == (1, 1, h, w)
    expected = torch.arange(extra, extra + h * w).view(h, w)
    assert torch.equal(laid_out[0, 0], expected)


@pytest.mark.parametrize('channels_last', [False, True])
def test_maps_keep_their_place_wherever_the_channels_are(channels_last):
    x = torch.rand(2, 24, 3, 5)
    given_ = x.permute(0, 2, 3, 1) if channels_last else x
    assert torch.equal(to_map(given_, (90, 160)), x)


def test_what_is_no_map_is_refused():
    with pytest.raises(ValueError, match=r'\(1, 7, 4\).* 64 x 64 px with 1'):
        to_map(torch.rand(1, 7, 4), (64, 64), 1)
    with pytest.raises(ValueError, match=r'\(1, 10\)'):
        to_map(torch.rand(1, 10), (64, 64))


@given(st.tuples(sides, sides), st.sampled_from([4, 8, 16, 32]))
def test_cells_of_the_usual_strides_keep_their_size(size, stride):
    grid = grid_of(size, stride)
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
    big = enlarge(cells, (100, 80), (97, 70), smooth=False)
    assert big.shape == (97, 70)
    assert big[32:48, 48:64].min() == 1
    assert big.sum() == 16 * 16


def test_smooth_maps_peak_in_the_middle_of_their_cell():
    cells = np.zeros((4, 6), np.float32)
    cells[1, 4] = 1
    big = enlarge(cells, (32, 48), (32, 48))
    assert np.unravel_index(big.argmax(), big.shape) in [(11, 35), (12, 36)]
    assert big[11, 20] == 0


def test_an_overlay_goes_from_blue_to_red():
    image = np.full((2, 2, 3), 128, np.uint8)
    red, green, blue = heat_overlay(
        image, np.array([[0.1, 0.9], [0.9, 0.1]])
    ).transpose(2, 0, 1)
    assert (blue > red + 50)[[0, 1], [0, 1]].all()
    assert (red > blue + 50)[[0, 1], [1, 0]].all()
    assert green.max() < 255
