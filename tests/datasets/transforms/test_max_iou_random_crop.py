import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.transforms.utils import cache_random_params
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from scipy import stats

from anchorformer_mm.datasets.transforms import MaxIoURandomCrop
from anchorformer_mm.datasets.transforms import (
    first_accepted,
    kept_boxes,
)

DRAWS = 10_000
THRESHOLDS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)


def scene(boxes, height=60, width=90, **more):
    """An image whose pixels say where they are, and numbered boxes."""
    y, x = np.mgrid[:height, :width]
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return dict(
        img=np.stack([x, y, x], axis=-1),
        img_shape=(height, width),
        gt_bboxes=HorizontalBoxes(boxes),
        gt_bboxes_labels=np.arange(len(boxes)),
        gt_ignore_flags=np.zeros(len(boxes), dtype=bool),
        **more,
    )


def window_of(results):
    """x1, y1, x2, y2 of the pixels that are left."""
    img = results['img']
    return np.array([*img[0, 0, :2], *(img[-1, -1, :2] + 1)])


def intersection_over_union(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return w * h / (sum(areas) - w * h)


def try_one_by_one(rng, boxes, height, width):
    """The law of the crop, window after window; the window that is left."""
    choices = [*THRESHOLDS, None]
    for i in rng.permutation(len(choices)):
        if choices[i] is None:
            break
        for _ in range(50):
            s = rng.uniform(0.3, 1)
            a = rng.uniform(max(0.5, s**2), min(2, s**-2))
            w = int(width * s * a**0.5)
            h = int(height * s / a**0.5)
            x, y = rng.integers(width - w), rng.integers(height - h)
            window = (x, y, x + w, y + h)
            ious = [intersection_over_union(window, b) for b in boxes]
            centres = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes]
            if max(ious) >= choices[i] and any(
                x <= cx < x + w and y <= cy < y + h for cx, cy in centres
            ):
                return window
    return (0, 0, width, height)


def test_windows_follow_the_laws_of_scale_aspect_and_place():
    crop = MaxIoURandomCrop(thresholds=[0.0], num_attempts=DRAWS)
    height, width = 30_000, 50_000
    windows = []
    for threshold, found in crop._random_windows(height, width):
        if threshold is not None:
            windows = found.double().numpy()
    x, y = windows[:, 0], windows[:, 1]
    w, h = windows[:, 2] - x, windows[:, 3] - y
    relative_w, relative_h = (w + 0.5) / width, (h + 0.5) / height
    scale = np.sqrt(relative_w * relative_h)
    aspect = relative_w / relative_h
    low = np.maximum(0.5, scale**2)
    high = np.minimum(2, scale**-2)
    assert len(windows) == DRAWS
    for sample, law in (
        (scale, stats.uniform(0.3, 0.7)),
        ((aspect - low) / (high - low), stats.uniform()),
        (x / (width - w), stats.uniform()),
        (y / (height - h), stats.uniform()),
    ):
        assert stats.kstest(sample, law.cdf).pvalue > 0.01
    # Scale and aspect say nothing of the place.
    assert abs(stats.spearmanr(scale, x / (width - w))[0]) < 0.03


def test_every_choice_comes_first_equally_often():
    crop = MaxIoURandomCrop(num_attempts=1)
    first = [crop._random_windows(40, 40)[0][0] for _ in range(DRAWS)]
    counts = [first.count(t) for t in (*THRESHOLDS, None)]
    assert sum(counts) == DRAWS
    assert stats.chisquare(counts).pvalue > 0.01


def test_crops_are_those_of_trying_window_after_window():
    height, width = 48, 64
    boxes = [(4, 6, 22, 20), (20, 10, 60, 44), (50, 2, 54, 5)]
    crop, rng = MaxIoURandomCrop(), np.random.default_rng(1)
    found = [
        window_of(crop.transform(scene(boxes, height, width)))
        for _ in range(DRAWS)
    ]
    expected = [try_one_by_one(rng, boxes, height, width) for _ in range(1500)]

    def describe(windows):
        windows = np.array(windows)
        whole = (windows == (0, 0, width, height)).all(axis=1)
        size = windows[:, 2:] - windows[:, :2]
        iou = [
            max(intersection_over_union(w, b) for b in boxes)
            for w in windows[~whole]
        ]
        return whole, [size[~whole, 0], size[~whole, 1], iou]

    whole, samples = describe(found)
    expected_whole, expected_samples = describe(expected)
    table = [[side.sum(), (~side).sum()] for side in (whole, expected_whole)]
    assert stats.chi2_contingency(table).pvalue > 0.01
    for ours, theirs in zip(samples, expected_samples, strict=True):
        assert stats.ks_2samp(ours, theirs).pvalue > 0.01


@pytest.mark.parametrize('threshold', THRESHOLDS)
def test_accepted_windows_reach_their_threshold(threshold):
    box = (10, 10, 80, 55)
    crop = MaxIoURandomCrop([threshold], num_attempts=500, allow_no_crop=False)
    ious = []
    for _ in range(200):
        window = window_of(crop.transform(scene([box])))
        if tuple(window) != (0, 0, 90, 60):
            ious.append(intersection_over_union(window, box))
    assert len(ious) > 20
    assert min(ious) >= threshold
    # Nothing above is preferred. Small windows meet this box by a fifth.
    assert min(ious) < max(threshold, 0.2) + 0.06


def test_the_largest_overlap_decides_not_the_least():
    """mmdet's MinIoURandomCrop would never accept this image."""
    boxes = [(10, 10, 80, 55), (0, 0, 3, 3)]
    crop = MaxIoURandomCrop(thresholds=[0.7], allow_no_crop=False)
    results = crop.transform(scene(boxes))
    assert results['img_shape'] != (60, 90)
    assert 0 in results['gt_bboxes_labels']


def test_the_first_acceptable_window_wins():
    boxes = torch.tensor([[10.0, 10, 30, 30]])
    windows = torch.tensor(
        [[0.0, 0, 12, 12], [8, 8, 32, 32], [10, 10, 30, 30]]
    )
    assert first_accepted(windows, boxes, 0.5).tolist() == [8, 8, 32, 32]
    assert first_accepted(windows, boxes, 0.9).tolist() == [10, 10, 30, 30]
    assert first_accepted(windows[:2], boxes, 0.9) is None


def test_a_box_is_kept_by_its_centre_if_something_is_left_of_it():
    window = torch.tensor([[10.0, 10, 20, 20]])
    boxes = torch.tensor(
        [
            [8.0, 8, 12, 12],  # centre on the upper left corner: inside
            [18, 18, 22, 22],  # on the lower right corner: outside
            [0, 12, 21, 18],  # centre at 10.5
            [0, 12, 19, 18],  # centre at 9.5
            [15, 15, 15, 18],  # no area
            [15, 15, 16, 16],  # one pixel
        ]
    )
    kept = kept_boxes(window, boxes)[0].tolist()
    assert kept == [True, False, True, False, False, True]


coordinate = st.floats(-10, 100, width=32)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[coordinate] * 4), max_size=6),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.integers(0, 2**31),
)
def test_boxes_lie_in_the_crop_and_keep_their_labels(corners, shape, seed):
    corners = np.array(corners, dtype=np.float32).reshape(-1, 2, 2)
    boxes = np.sort(corners, axis=1).reshape(-1, 4)
    flags = np.arange(len(boxes)) % 3 == 2
    results = scene(boxes, *shape)
    results['gt_ignore_flags'] = flags
    np.random.seed(seed)
    results = MaxIoURandomCrop(allow_no_crop=False).transform(results)
    x1, y1, x2, y2 = window_of(results)
    assert results['img'].shape[:2] == results['img_shape']
    left, labels = results['gt_bboxes'].numpy(), results['gt_bboxes_labels']
    assert len(left) == len(labels) == len(results['gt_ignore_flags'])
    np.testing.assert_array_equal(results['gt_ignore_flags'], flags[labels])
    if (y2 - y1, x2 - x1) == shape:
        np.testing.assert_array_equal(left, boxes)
        return
    assert not results['gt_ignore_flags'].all()
    expected = boxes[labels].clip((x1, y1, x1, y1), (x2, y2, x2, y2))
    np.testing.assert_allclose(left, expected - (x1, y1, x1, y1), atol=1e-4)
    assert (left[:, 2:] > left[:, :2]).all()
    assert x2 < shape[1] and y2 < shape[0]


@pytest.mark.parametrize('shape', [(1, 1), (1, 40), (40, 1), (7, 300)])
def test_one_pixel_boxes_in_narrow_images(shape):
    for _ in range(20):
        results = MaxIoURandomCrop().transform(scene([(0, 0, 1, 1)], *shape))
        assert results['gt_bboxes'].tensor.tolist() == [[0, 0, 1, 1]]
        assert 0 not in results['img'].shape


def test_without_a_box_that_counts_the_image_stays_whole():
    crop = MaxIoURandomCrop(thresholds=[0.0], allow_no_crop=False)
    assert crop.transform(scene([]))['img_shape'] == (60, 90)
    crowd = scene([(10, 10, 50, 50)])
    crowd['gt_ignore_flags'][:] = True
    results = crop.transform(crowd)
    assert results['img'].shape == (60, 90, 3)
    assert len(results['gt_bboxes']) == 1


def test_an_ignored_box_has_no_say():
    """It alone would reach the threshold, from all over the image."""
    results = scene([(0, 0, 90, 60), (40, 30, 42, 32)])
    results['gt_ignore_flags'][0] = True
    crop = MaxIoURandomCrop(thresholds=[0.3], allow_no_crop=False)
    assert crop.transform(results)['img_shape'] == (60, 90)


def test_masks_and_label_map_are_cropped_along():
    boxes = np.array([(2, 2, 12, 12), (40, 20, 80, 50)])
    y, x = np.mgrid[:60, :90]
    bitmaps = [
        (x >= b[0]) & (x < b[2]) & (y >= b[1]) & (y < b[3]) for b in boxes
    ]
    crop = MaxIoURandomCrop(thresholds=[0.5], allow_no_crop=False)
    for _ in range(20):
        results = crop.transform(
            scene(
                boxes,
                gt_masks=BitmapMasks(np.array(bitmaps, np.uint8), 60, 90),
                gt_seg_map=x.copy(),
            )
        )
        np.testing.assert_array_equal(
            results['gt_seg_map'], results['img'][..., 0]
        )
        found = results['gt_masks'].get_bboxes(HorizontalBoxes)
        assert torch.equal(found.tensor, results['gt_bboxes'].tensor)


def test_cached_randomness_repeats_the_crop():
    crop = MaxIoURandomCrop()
    boxes = [(10, 10, 50, 50)]
    with cache_random_params(crop):
        windows = {
            tuple(window_of(crop.transform(scene(boxes)))) for _ in range(5)
        }
    assert len(windows) == 1


def test_array_boxes_are_taken_as_horizontal_and_others_refused():
    results = scene([(10, 10, 50, 50)])
    results['gt_bboxes'] = np.array([[10, 10, 50, 50]], np.float32)
    crop = TRANSFORMS.build(dict(type='anchorformer_mm.MaxIoURandomCrop'))
    assert len(crop.transform(results)['gt_bboxes']) == 1

    class OtherBoxes(BaseBoxes):
        box_dim = 4

    OtherBoxes.__abstractmethods__ = frozenset()
    results['gt_bboxes'] = OtherBoxes(torch.zeros(1, 4))
    with pytest.raises(TypeError, match='HorizontalBoxes, got OtherBoxes'):
        crop.transform(results)


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        (dict(thresholds=[]), r'thresholds .* got \[\]'),
        (dict(thresholds=0.5), r'thresholds .* got 0\.5'),
        (dict(thresholds=(0.5, 1.5)), r'thresholds .* got \(0\.5, 1\.5\)'),
        (dict(scales=(0.0, 1.0)), r'scales .* got \(0\.0, 1\.0\)'),
        (dict(scales=(0.3, 1.2)), r'scales .* got \(0\.3, 1\.2\)'),
        (dict(scales=(0.9, 0.3)), r'scales .* got \(0\.9, 0\.3\)'),
        (dict(scales=0.3), r'scales must be two numbers, got 0\.3'),
        (dict(aspect_ratios=(0, 2)), r'aspect_ratios .* got \(0, 2\)'),
        (dict(aspect_ratios=(1.5, 2)), r'aspect_ratios .* got \(1\.5, 2\)'),
        (dict(num_attempts=0), 'num_attempts .* got 0'),
        (dict(num_attempts=2.5), r'num_attempts .* got 2\.5'),
    ],
)
def test_bad_arguments_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        MaxIoURandomCrop(**bad)
