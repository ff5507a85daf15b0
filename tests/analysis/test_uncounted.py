import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anchorformer_mm.analysis.complexity import count_complexity
from anchorformer_mm.analysis.uncounted import (
    KINDS,
    MOVES,
    UncountedOperators,
    in_words,
)


class Calls(nn.Module):
    """A convolution, and then a function."""

    def __init__(self, function):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.function = function

    def forward(self, x):
        return self.function(self.first(x))


def calls(function):
    return count_complexity(Calls(function), (8, 8)).not_counted


@pytest.mark.parametrize(
    ('function', 'expected'),
    [
        (lambda x: x, {}),
        # Views and copies, and what has multiply-accumulates.
        (lambda x: torch.cat([x, x]).transpose(2, 3) @ x.flip(3), {}),
        (lambda x: x.clone().relu_() + F.relu(x), {'relu': 2, 'add': 1}),
        (
            lambda x: F.layer_norm(x, x.shape[1:]).softmax(1),
            {'native_layer_norm': 1, '_softmax': 1},
        ),
        (lambda x: x.topk(2).values.sort().values, {'topk': 1, 'sort': 1}),
        (
            lambda x: F.interpolate(x, scale_factor=2, mode='bilinear'),
            {'upsample_bilinear2d': 1},
        ),
        (lambda x: torch.special.bessel_j0(x), {'special_bessel_j0': 1}),
    ],
)
def test_calls_are_of_what_computes_and_is_not_counted(function, expected):
    assert calls(function) == expected


def test_real_tensors_pass_as_they_are():
    x = torch.rand(2, 3, requires_grad=True)
    with UncountedOperators() as others:
        y = x.softmax(1).log()
    torch.testing.assert_close(y, x.softmax(1).log())
    assert others.calls == {'_softmax': 1, 'log': 1}
    y.sum().backward()
    assert x.grad is not None


def test_words_are_kinds_and_whatever_has_none():
    found = {'gelu': 2, 'relu': 3, '_softmax': 1, 'erfinv': 4}
    assert in_words(found) == 'activations 5; softmax 1; other: erfinv 4'
    assert in_words({}) == 'nothing'


def test_no_operator_is_of_two_kinds():
    names = [n for line in KINDS.values() for n in line.split()]
    names += MOVES.split()
    assert len(names) == len(set(names))
