"""What checks the arguments of layers and backbones."""

import pytest

from anchorformer_mm.models.layers.base_attention import one_for_each


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
