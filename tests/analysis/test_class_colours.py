import numpy as np
import pytest

from anchorformer_mm.analysis.class_colours import (
    class_legend,
    colour_labels,
    hatching,
)

PALETTE = [(250, 0, 10), (0, 240, 20), (30, 0, 230)]


def test_classes_have_their_colours_and_the_rest_is_hatched():
    labels = np.array([[0, 1, 2], [2, 3, 255], [2, 2, -1]])
    picture = colour_labels(labels, PALETTE, 60)
    assert picture.shape == (60, 60, 3)
    stripes = hatching(60, 60)
    for i, j in np.ndindex(3, 3):
        place = slice(20 * i, 20 * i + 20), slice(20 * j, 20 * j + 20)
        is_class = 0 <= labels[i, j] < 3
        expected = PALETTE[labels[i, j]] if is_class else stripes[place]
        assert (picture[place] == expected).all()


@pytest.mark.parametrize('dtype', [np.uint8, np.int64, np.float32])
def test_colours_never_mix_when_a_map_shrinks(dtype):
    labels = np.arange(90 * 70).reshape(90, 70) % 3
    picture = colour_labels(labels.astype(dtype), PALETTE, 45)
    assert picture.shape == (45, 35, 3)
    assert set(map(tuple, picture.reshape(-1, 3))) == set(PALETTE)


def test_hatching_is_seen_beside_any_flat_colour():
    stripes = hatching(12, 12)
    assert len(np.unique(stripes)) == 2
    assert np.ptp(stripes) > 60
    # Diagonal: both shades in every row and column.
    assert (np.ptp(stripes[..., 0], axis=0) > 0).all()
    assert (np.ptp(stripes[..., 0], axis=1) > 0).all()


def test_a_legend_names_the_classes_that_occur_in_their_order():
    names = ['sky', 'sea', 'sand']
    legend = class_legend(np.array([5, 0, 9]), names, PALETTE)
    assert legend == [('sky', PALETTE[0]), ('sand', PALETTE[2])]
    assert class_legend(np.zeros(3, int), names, PALETTE) == []


def test_a_long_legend_keeps_the_classes_with_most_pixels():
    counts = np.array([3, 0, 9, 9, 1, 2])
    palette = [(i, i, i) for i in range(6)]
    legend = class_legend(counts, list('abcdef'), palette, most=3)
    assert legend == [
        ('a', palette[0]),
        ('c', palette[2]),
        ('d', palette[3]),
        ('and 2 more', None),
    ]
