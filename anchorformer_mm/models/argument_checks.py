"""Checks of modules' arguments; an error names the argument and its value.

They look at types too: ``'8'`` and ``nan`` come from configs as well, and
comparing them raises errors that name neither.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf, isfinite
from numbers import Real
from typing import Any


def is_count(value: object) -> bool:
    """Return True for an int >= 1; True and 8.0 are none."""
    return type(value) is int and value >= 1


def is_number(value: object) -> bool:
    """Return True for a finite number; True is none."""
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    return is_real and isfinite(value)


def is_fraction(value: object) -> bool:
    """Return True for a number in [0, 1]; True is none."""
    return is_number(value) and 0 <= value <= 1


def _check(
    is_right: Callable[[Any], bool], rule: str, /, **arguments: Any
) -> None:
    """Raise a ValueError that names the first argument that is not right."""
    for name, value in arguments.items():
        if not is_right(value):
            raise ValueError(f'{name} must be {rule}, got {value!r}')


# Each takes arguments by their names, as check_positive(num_heads=8).
check_positive = partial(_check, is_count, 'an int >= 1')
check_odd = partial(
    _check, lambda v: is_count(v) and v % 2 == 1, 'odd, an int >= 1'
)
check_rates = partial(
    _check, lambda v: is_number(v) and 0 <= v < 1, 'in [0, 1)'
)
check_fractions = partial(_check, is_fraction, 'in [0, 1]')
check_above_zero = partial(
    _check, lambda v: is_number(v) and v > 0, 'a number > 0'
)
check_not_negative = partial(
    _check, lambda v: is_number(v) and v >= 0, 'a number >= 0'
)


def check_one_of(allowed: Sequence[str], /, **arguments: str) -> None:
    """Raise a ValueError that names the first argument not among these."""
    rule = f'one of {tuple(allowed)}'
    _check(lambda v: isinstance(v, str) and v in allowed, rule, **arguments)


def check_within(low: int, high: int, /, **arguments: int) -> None:
    """Raise a ValueError that names the first argument not in [low, high]."""
    rule = f'an int in [{low}, {high}]'
    _check(lambda v: type(v) is int and low <= v <= high, rule, **arguments)


def rising(
    name: str, value: Sequence[int], low: int, high: float = inf
) -> tuple[int, ...]:
    """Rising ints in [low, high], one at least.

    Raises:
        ValueError: The value is anything else.
    """
    if (
        not isinstance(value, Sequence)
        or not value
        # Before the set, which takes only what can be hashed.
        or not all(type(i) is int and low <= i <= high for i in value)
        or list(value) != sorted(set(value))
    ):
        raise ValueError(
            f'{name} must be rising ints in [{low}, {high}], got {value!r}'
        )
    return tuple(value)


def one_for_each(
    name: str, value: int | Sequence[int], count: int
) -> tuple[int, ...]:
    """Spread an argument over ``count`` places unless it already is.

    Raises:
        ValueError: It is neither an int >= 1 nor ``count`` of them.
    """
    values = (value,) * count if isinstance(value, int) else value
    if (
        not isinstance(values, Sequence)
        or len(values) != count
        or not all(map(is_count, values))
    ):
        raise ValueError(
            f'{name} must be an int >= 1 or {count} of them, got {value!r}'
        )
    return tuple(values)


def named_or_dict(
    name: str,
    value: str | Mapping,
    named: Mapping[str, Mapping],
    keys: Sequence[str],
) -> dict:
    """Settings of an architecture, by its name or as they are.

    Args:
        name: Of the argument.
        value: A name, or settings with exactly ``keys``.
        named: Settings by name.
        keys: Of the settings.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, str) and value in named:
        return dict(named[value])
    if not isinstance(value, Mapping) or set(value) != set(keys):
        raise ValueError(
            f'{name} must be one of {tuple(named)} or a dict with exactly the '
            f'keys {tuple(keys)}, got {value!r}'
        )
    return dict(value)
