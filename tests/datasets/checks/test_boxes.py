"""What is wrong with one box."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorformer_mm.datasets.checks.boxes import box_problem

SIZE = (64, 48)


@pytest.mark.parametrize(
    ('box', 'kind'),
    [
        ([1, 2, 3], 'box-invalid'),
        ('1234', 'box-invalid'),
        (None, 'box-invalid'),
        ([1, 2, '3', 4], 'box-invalid'),
        ([math.nan, 2, 3, 4], 'box-invalid'),
        ([1, 2, 3, math.inf], 'box-invalid'),
        ([1, 2, 3, -(10**310)], 'box-invalid'),
        ([9, 9, -3, 4], 'box-invalid'),
        ([1, 2, 0, 4], 'box-without-area'),
        ([64, 2, 3, 4], 'box-outside'),
        ([1, -9, 3, 9], 'box-outside'),
        ([60, 2, 6, 4], 'box-partly-outside'),
        ([-2, 2, 6, 4], 'box-partly-outside'),
        ([1, 2, 0.5, 4], 'box-tiny'),
    ],
)
def test_the_gravest_thing_is_told(box, kind):
    found, text = box_problem(box, SIZE)
    assert found == kind
    assert str(box) in text or repr(box) in text or '...' in text


@given(st.floats(0, 63), st.floats(0, 47), st.floats(1, 64), st.floats(1, 48))
def test_boxes_within_their_image_are_sound(x, y, width, height):
    width, height = min(width, SIZE[0] - x), min(height, SIZE[1] - y)
    assert box_problem([x, y, width, height], SIZE) is None


def test_a_pixel_over_the_border_is_rounding():
    assert box_problem([-1, -1, 66, 50], SIZE) is None
    assert '1.5 px out' in box_problem([0, 0, 65.5, 48], SIZE)[1]


def test_the_size_of_the_image_need_not_be_known():
    assert box_problem([1000, 0, 5, 5], None) is None
    assert box_problem([1000, 0, 0, 5], None)[0] == 'box-without-area'
