"""Checks of modules' arguments."""

import pytest

from anchorformer_mm.models.argument_checks import (
    check_above_zero,
    check_fractions,
    check_not_negative,
    check_odd,
    check_one_of,
    check_positive,
    check_rates,
    one_for_each,
)


def test_an_int_is_spread_and_a_sequence_taken():
    assert one_for_each('size', 3, 2) == (3, 3)
    assert one_for_each('size', [3, 4], 2) == (3, 4)


@pytest.mark.parametrize(
    'value',
    [0, -1, True, 2.0, None, '33', (), (3,), (3, 3, 3), (3, 0), (3, True)]
    + [(3, 2.0), {3, 4}],
    ids=repr,
)
def test_anything_else_is_refused_with_its_name_and_value(value):
    with pytest.raises(ValueError) as error:
        one_for_each('size', value, 2)
    assert str(error.value) == (
        f'size must be an int >= 1 or 2 of them, got {value!r}'
    )


NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize(
    ('check', 'values'),
    [
        (check_positive, [0, -1, 2.0, True, '3', None, [4], NAN]),
        (check_odd, [0, -1, 2, 3.0, True, '3', None]),
        (check_rates, [-0.1, 1, 1.5, NAN, INF, True, '0.1', None]),
        (check_not_negative, [-0.1, NAN, INF, True, '1', None]),
        (check_fractions, [-0.1, 1.1, NAN, True, '1', None]),
        (check_above_zero, [0, -1.0, NAN, INF, True, '1', None, []]),
    ],
)
def test_what_is_out_of_range_is_refused_with_its_name_and_value(
    check, values
):
    for value in values:
        check(side=1 if check in (check_positive, check_odd) else 0.5)
        with pytest.raises(ValueError, match='^size must be ') as error:
            check(size=value)
        assert str(error.value).endswith(f', got {value!r}')


@pytest.mark.parametrize('value', ['c', '', 3, None, [], ['a']])
def test_what_is_not_offered_is_refused(value):
    check_one_of(('a', 'b'), kind='a')
    with pytest.raises(ValueError) as error:
        check_one_of(('a', 'b'), kind=value)
    assert str(error.value) == (
        f"kind must be one of ('a', 'b'), got {value!r}"
    )
