import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorformer_mm.models.layers import TokenWindows

MAPS = dict(
    h=st.integers(1, 30), w=st.integers(1, 30), side=st.integers(1, 12)
)


@settings(deadline=None, max_examples=60)
@given(**MAPS)
def test_as_few_windows_as_the_side_allows_cover_the_map(h, w, side):
    windows = TokenWindows.cover((h, w), side)
    assert windows.hw_shape == (h, w)
    assert len(windows) == windows.counts[0] * windows.counts[1]
    for length, count, size in zip(
        (h, w), windows.counts, windows.size, strict=True
    ):
        assert 1 <= size <= side
        assert (count - 1) * side < length <= count * size
        # The smallest size that so many windows can have.
        assert count * (size - 1) < length


@settings(deadline=None, max_examples=60)
@given(**MAPS)
def test_a_window_holds_its_part_of_the_map(h, w, side):
    windows = TokenWindows.cover((h, w), side)
    x = torch.randn(2, h * w, 3)
    split = windows.split(x)
    height, width = windows.size
    assert split.shape == (2 * len(windows), height * width, 3)
    maps = x.unflatten(1, (h, w))
    split = split.unflatten(1, windows.size).unflatten(0, (2, len(windows)))
    for i in range(len(windows)):
        top = i // windows.counts[1] * height
        left = i % windows.counts[1] * width
        part = maps[:, top : top + height, left : left + width]
        rows, columns = part.shape[1:3]
        assert rows
        assert columns
        assert torch.equal(split[:, i, :rows, :columns], part)
        assert not split[:, i, rows:].any()
        assert not split[:, i, :, columns:].any()


@settings(deadline=None, max_examples=60)
@given(**MAPS)
def test_joining_undoes_splitting(h, w, side):
    windows = TokenWindows.cover((h, w), side)
    x = torch.arange(2 * h * w * 3).reshape(2, h * w, 3)
    assert torch.equal(windows.join(windows.split(x)), x)


@settings(deadline=None, max_examples=60)
@given(**MAPS)
def test_valid_marks_the_tokens_of_the_map(h, w, side):
    windows = TokenWindows.cover((h, w), side)
    # Whatever the tokens hold, zeros or infinities.
    x = torch.zeros(2, h * w, 3)
    x[1] = torch.inf
    valid = windows.valid(x)
    marks = windows.split(torch.ones(2, h * w, 1))[..., 0].bool()
    if valid is None:
        assert marks.all()
    else:
        assert not marks.all()
        assert valid.dtype == torch.bool
        assert torch.equal(valid, marks)
    assert marks.any(1).all()


@pytest.mark.parametrize(
    ('hw_shape', 'side', 'counts', 'size'),
    [
        ((56, 56), 56, (1, 1), (56, 56)),
        ((57, 56), 56, (2, 1), (29, 56)),
        ((200, 336), 56, (4, 6), (50, 56)),
        ((1, 5), 2, (1, 3), (1, 2)),
    ],
)
def test_windows_of_known_maps(hw_shape, side, counts, size):
    windows = TokenWindows.cover(hw_shape, side)
    assert windows == TokenWindows(hw_shape, counts, size)
