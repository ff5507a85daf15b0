"""Arguments that modules have in common, in and out of their range."""

from fuzz_trials import Wrong
from hypothesis import strategies as st

FLAG = st.booleans()
RATE = st.sampled_from([0.0, 0.1, 0.5, 0.9])
ATTENTIONS = ('learned', 'query', 'vanilla')
# Torch's group norm refuses a single value, also in evaluation.
NORM = st.sampled_from(
    [dict(type='BN'), dict(type='SyncBN'), dict(type='BN', momentum=0.03)]
)
ACT = st.sampled_from(
    [dict(type=name) for name in ('ReLU', 'GELU', 'HSwish', 'SiLU')]
)

_ODD_TYPES = (
    st.none() | st.booleans() | st.text(max_size=4) | st.just({}) | st.just([])
)
NO_NUMBER = _ODD_TYPES | st.sampled_from([float('nan'), float('inf')])
NO_COUNT = NO_NUMBER | st.integers(-(10**6), 0) | st.floats() | st.just([4])
NO_RATE = NO_NUMBER | st.floats(max_value=-1e-6) | st.floats(min_value=1)
NO_SIZE = NO_NUMBER | st.floats(max_value=0) | st.integers(max_value=0)
NO_ODD = NO_COUNT | st.integers(1, 50).map(lambda n: 2 * n)
NO_CHOICE = st.text(max_size=6) | st.integers() | st.none() | st.just([])


def counts(most: int = 8) -> st.SearchStrategy[int]:
    """Ints from 1."""
    return st.integers(1, most)


def one_or(number: int, values: st.SearchStrategy) -> st.SearchStrategy:
    """One value, or a sequence of so many."""
    several = st.lists(values, min_size=number, max_size=number)
    return values | several | several.map(tuple)


def not_one_or(number: int) -> st.SearchStrategy:
    """Neither an int >= 1 nor so many."""
    ints = st.lists(st.integers(-2, 4), max_size=number + 1)
    return NO_COUNT.filter(lambda v: v != [4] or number > 1) | ints.filter(
        lambda v: len(v) != number or min(v, default=0) < 1
    )


def not_rising(stages: int, *, none: bool = True) -> st.SearchStrategy:
    """No rising numbers of stages."""
    ints = st.lists(st.integers(-stages - 3, stages + 2), max_size=4)
    values = ints.filter(
        lambda v: (
            not v
            or list(v) != sorted(set(v))
            or v[0] < -stages
            or v[-1] >= stages
        )
    )
    odd = st.just('01') | st.just([[0]]) | st.just([0.5])
    return values | odd | (st.none() if none else st.nothing())


def not_frozen(stages: int) -> st.SearchStrategy:
    """Neither -1 nor a number of first stages."""
    return (
        NO_NUMBER
        | st.integers(stages + 1, 99)
        | st.integers(-99, -2)
        | st.floats(-1, stages)
    )


def some(**optional: st.SearchStrategy) -> st.SearchStrategy[dict]:
    """Some of these arguments, the others have their defaults."""
    return st.fixed_dictionaries({}, optional=optional)


def bad(**values: st.SearchStrategy) -> st.SearchStrategy[Wrong]:
    """One of these arguments, wrong; or one that there is not."""
    wrong = [
        value.map(lambda v, name=name: Wrong({name: v}, name, v))
        for name, value in values.items()
    ]
    unknown = st.just(Wrong({'num_head': 3}, 'num_head'))
    return st.one_of(*wrong, unknown)


def bad_in(
    outer: str, rest: dict, **values: st.SearchStrategy
) -> st.SearchStrategy[Wrong]:
    """A wrong value in an argument that is a dictionary."""
    return st.one_of(
        [
            value.map(
                lambda v, key=key: Wrong({outer: rest | {key: v}}, key, v)
            )
            for key, value in values.items()
        ]
    )


def together(name: str, **arguments: object) -> st.SearchStrategy[Wrong]:
    """Arguments that do not go together; the error must name the first."""
    return st.just(Wrong(arguments, name, arguments[name]))


@st.composite
def with_heads(draw: st.DrawFn, **optional: st.SearchStrategy) -> dict:
    """Channels that heads divide, and some of the other arguments."""
    heads = draw(counts(4))
    dims = heads * draw(counts())
    return dict(embed_dims=dims, num_heads=heads) | draw(some(**optional))
