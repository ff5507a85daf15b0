"""Checks of what configs give to the transforms."""

from numbers import Real


def check_interval(
    name: str, value: tuple[float, float], low: float, high: float
) -> tuple[float, float]:
    """Return ``value`` as two floats a, b with low <= a <= b <= high.

    Raises:
        ValueError: ``value`` is not that; the message names it ``name``.
    """
    is_pair = isinstance(value, (tuple, list)) and len(value) == 2
    if not is_pair or not all(isinstance(x, Real) for x in value):
        raise ValueError(f'{name} must be two numbers, got {value!r}')
    if not low <= value[0] <= value[1] <= high:
        raise ValueError(
            f'{name} must be an interval (a, b) with '
            f'{low} <= a <= b <= {high}, got {value!r}'
        )
    return float(value[0]), float(value[1])
