import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorformer_mm.analysis.synthetic_coco import (
    random_boxes,
    write_synthetic_coco,
)


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 20),
    shape=st.tuples(st.integers(8, 900), st.integers(8, 900)),
)
def test_boxes_lie_in_the_image(seed, count, shape):
    boxes = random_boxes(np.random.default_rng(seed), count, shape)
    assert boxes.shape == (count, 4)
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= np.array(shape)[::-1] + 1e-9).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 4 - 1e-9).all()


def test_boxes_have_the_sizes_of_coco():
    boxes = random_boxes(np.random.default_rng(0), 20_000, (480, 640))
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    assert (area < 32**2).mean() == pytest.approx(0.41, abs=0.02)
    assert (area > 96**2).mean() == pytest.approx(0.24, abs=0.02)


def test_what_is_written(tmp_path):
    classes = ['one', 'two', 'three']
    write_synthetic_coco(tmp_path / 'new', classes, 40, (60, 80))
    content = json.loads((tmp_path / 'new' / 'annotations.json').read_text())
    assert [c['name'] for c in content['categories']] == classes
    counts = np.zeros(40, int)
    for i, box in enumerate(content['annotations']):
        assert box['id'] == i
        assert box['category_id'] in (0, 1, 2)
        assert box['area'] == pytest.approx(box['bbox'][2] * box['bbox'][3])
        counts[box['image_id']] += 1
    assert counts.min() >= 1
    assert counts.mean() == pytest.approx(7.3, abs=2.5)
    for image in content['images']:
        path = tmp_path / 'new' / 'images' / image['file_name']
        assert cv2.imread(str(path)).shape == (60, 80, 3)
        assert (image['height'], image['width']) == (60, 80)


def test_a_seed_gives_the_same_files(tmp_path):
    contents = []
    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
        write_synthetic_coco(tmp_path / name, ['x'], 2, (60, 80), seed)
        files = sorted((tmp_path / name).rglob('*.*'))
        contents.append([path.read_bytes() for path in files])
    assert len(contents[0]) == 3
    assert contents[0] == contents[1] != contents[2]
