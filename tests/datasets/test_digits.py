"""The scenes of the embedded data set."""

import sys
from functools import cache

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorformer_mm.datasets import (
    digits,
    load_scans,
    make_scene,
)

scans_of = cache(load_scans)


def tight_box(mask: np.ndarray) -> list[int]:
    return list(cv2.boundingRect(mask.astype(np.uint8)))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.tuples(st.integers(64, 208), st.integers(64, 208)),
)
def test_a_scene_of_any_size_is_well_formed_and_repeatable(seed, size):
    first, second = (
        make_scene(np.random.default_rng(seed), scans_of('train'), size)
        for _ in range(2)
    )
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(second, name))
    number, shape = len(first.boxes), size[::-1]
    assert first.image.shape == (*shape, 3)
    assert first.image.dtype == first.semantic.dtype == np.uint8
    assert first.semantic.shape == shape
    assert first.masks.shape == (number, *shape)
    for field in (first.labels, first.visible, first.inks, first.scans):
        assert len(field) == number
    boxes = [tight_box(mask) for mask in first.masks]
    assert first.boxes.tolist() == boxes
    assert {*np.unique(first.semantic)} - {0} == {*first.labels + 1}
    assert set(first.labels) <= set(range(10))


def test_splits_share_no_scan_and_hold_every_class():
    train, val, both = (scans_of(split) for split in ('train', 'val', None))
    assert not set(train.indices) & set(val.indices)
    assert {*train.indices, *val.indices} == set(both.indices)
    assert len(both) == 1797
    for scans in (train, val):
        shares = np.bincount(scans.labels) / np.bincount(both.labels)
        np.testing.assert_allclose(shares, len(scans) / len(both), atol=0.01)
        assert scans.images.min() == 0
        assert scans.images.max() == 1


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"split must be .*'test'"):
        load_scans('test')


def test_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(ImportError, match='pip install scikit-learn'):
        load_scans()


@given(st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_a_single_digit_is_repeatable_and_has_its_size(seed):
    scan = scans_of('val').images[seed % 300]
    one, two = (
        digits.make_single(np.random.default_rng(seed), scan, (64, 80))
        for _ in range(2)
    )
    assert one.shape == (80, 64, 3)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, two)
