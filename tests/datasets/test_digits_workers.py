"""The processes that make the embedded data set."""

import os
import time

import pytest

from anchorformer_mm.datasets.digits_workers import processes


@pytest.mark.parametrize('number', [1, 3])
def test_results_come_in_order(number):
    with processes(number) as run:
        assert list(run(abs, range(-5, 5))) == list(map(abs, range(-5, 5)))
        assert list(run(str, range(2))) == ['0', '1']


@pytest.mark.parametrize('number', [1, 2])
def test_exception_of_the_function_is_raised(number):
    with processes(number) as run, pytest.raises(ValueError, match="'x'"):
        list(run(int, ['1', '2', 'x', '4']))


def test_process_that_dies_is_reported():
    with (
        processes(2) as run,
        pytest.raises(RuntimeError, match='ended before its work was done'),
    ):
        list(run(os._exit, [3, 3]))


def test_leaving_ends_work_that_is_under_way():
    start = time.monotonic()
    with processes(2) as run:
        next(run(time.sleep, [0, 60, 60, 60]))
    assert time.monotonic() - start < 30
