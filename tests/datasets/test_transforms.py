"""PicoDet's crop, colours and multi-scale batches against their rules."""

from functools import partial
from itertools import compress, permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.image import imresize
from mmcv.transforms.utils import cache_random_params
from mmdet.registry import MODELS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from PIL import Image
from scipy import stats

from anchorformer_mm.datasets.transforms import (
    INTERPOLATIONS,
    MaxIoURandomCrop,
    MultiplicativeColorDistortion,
    distort,
    distort_without_bounds,
    first_accepted,
    kept_boxes,
    random_square_collate,
)

DRAWS = 10_000


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)


def photo(height=33, width=47, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


# MaxIoURandomCrop


def scene(boxes, height=60, width=90, **more):
    """An image whose pixels say where they are, and numbered boxes."""
    y, x = np.mgrid[:height, :width]
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return dict(
        img_shape=(height, width),
        gt_bboxes=HorizontalBoxes(boxes),
        gt_bboxes_labels=np.arange(len(boxes)),
        gt_ignore_flags=np.zeros(len(boxes), dtype=bool),
    ) | (dict(img=np.stack([x, y, x], axis=-1)) | more)


def window_of(results):
    """x1, y1, x2, y2 of the pixels that are left."""
    img = results['img']
    return np.array([*img[0, 0, :2], *(img[-1, -1, :2] + 1)])


def test_windows_are_uniform_in_scale_aspect_and_place():
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
    for sample, expected in (
        (scale, stats.uniform(0.3, 0.7)),
        ((aspect - low) / (high - low), stats.uniform()),
        (x / (width - w), stats.uniform()),
        (y / (height - h), stats.uniform()),
    ):
        assert stats.kstest(sample, expected.cdf).pvalue > 0.01
    # Scale and aspect say nothing of the place.
    assert abs(stats.spearmanr(scale, x / (width - w))[0]) < 0.03


def test_every_choice_comes_first_equally_often():
    crop = MaxIoURandomCrop(num_attempts=1)
    first = [crop._random_windows(40, 40)[0][0] for _ in range(DRAWS)]
    counts = [first.count(t) for t in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, None)]
    assert sum(counts) == DRAWS
    assert stats.chisquare(counts).pvalue > 0.01


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
    results = scene(boxes, *shape) | dict(gt_ignore_flags=flags)
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


# MultiplicativeColorDistortion

NAMES = ('brightness', 'contrast', 'saturation', 'hue')


def grey(img):
    return img @ (0.114, 0.587, 0.299)


@pytest.mark.parametrize('factor', [0, 0.5, 0.77, 1, 1.31, 1.5])
def test_factors_scale_the_distance_from_black_mean_and_grey(factor):
    img = photo()
    origins = dict(
        brightness=np.zeros(1),
        contrast=np.round(grey(img).mean()),
        saturation=np.round(grey(img))[..., None],
    )
    for name, origin in origins.items():
        expected = (origin + factor * (img - origin)).clip(0, 255)
        found = distort(img, [(name, factor)])
        assert found.dtype == np.uint8
        # Pillow truncates, and its greys are rounded weights.
        assert np.abs(found - expected).max() <= 1.5, name
        assert np.abs(found - expected).mean() <= 0.55, name


@pytest.mark.parametrize('turn', [-18, -0.6, -7.3, 0, 0.9, 12.5, 18])
def test_the_hue_is_a_byte_that_is_truncated_and_wraps(turn):
    img = photo()
    hsv = np.array(Image.fromarray(img[..., ::-1]).convert('HSV'))
    hue = hsv[..., 0].astype(np.float64) + turn
    hsv[..., 0] = np.trunc(hue) % 256
    expected = Image.frombytes('HSV', (47, 33), hsv.tobytes()).convert('RGB')
    np.testing.assert_array_equal(
        distort(img, [('hue', turn)])[..., ::-1], np.asarray(expected)
    )


def test_presence_order_and_amounts_are_uniform():
    transform = MultiplicativeColorDistortion()
    draws = [transform._random_distortions() for _ in range(DRAWS)]
    subsets = [frozenset(name for name, _ in draw) for draw in draws]
    counts = [
        subsets.count(frozenset(compress(NAMES, bits)))
        for bits in product((0, 1), repeat=4)
    ]
    assert sum(counts) == DRAWS
    assert stats.chisquare(counts).pvalue > 0.01
    orders = [tuple(n for n, _ in draw) for draw in draws if len(draw) == 4]
    counts = [orders.count(order) for order in permutations(NAMES)]
    assert stats.chisquare(counts).pvalue > 0.01
    for name in NAMES:
        amounts = [a for draw in draws for n, a in draw if n == name]
        expected = stats.uniform(0.5, 1)
        if name == 'hue':
            expected = stats.uniform(-18, 36)
        assert stats.kstest(amounts, expected.cdf).pvalue > 0.01, name


@pytest.mark.parametrize('order', [*permutations(NAMES), ()])
def test_the_legacy_law_is_a_sequence_of_maps_of_rgb(order):
    img, amount = photo(), 1.37
    to_yiq = [[0.299, 0.587, 0.114], [0.596, -0.274, -0.321]]
    to_yiq = np.array([*to_yiq, [0.211, -0.523, 0.311]])
    wanted = img[..., ::-1].astype(np.float64)
    for name in order:
        y, i, q = np.moveaxis(wanted @ to_yiq.T, 2, 0)
        u, w = np.cos(amount * np.pi), np.sin(amount * np.pi)
        i, q = u * i - w * q, w * i + u * q
        turned = y + 0.956 * i + 0.621 * q, y - 0.272 * i - 0.647 * q
        wanted = dict(
            brightness=wanted + amount,
            contrast=wanted * amount,
            saturation=y[..., None] + amount * (wanted - y[..., None]),
            hue=np.stack([*turned, y - 1.107 * i + 1.705 * q], 2),
        )[name]
    found = distort_without_bounds(img, [(name, amount) for name in order])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[..., ::-1], wanted, atol=1e-3)


def test_legacy_images_go_through_the_batch_as_they_are():
    transform = MultiplicativeColorDistortion(prob=1, legacy=True)
    img = transform(dict(img=photo(40, 40)))['img']
    assert img.min() < 0 and img.max() > 255
    data = packed(img)
    (found,) = random_square_collate([data], [40])['inputs']
    assert torch.equal(found, as_tensor(img))
    with pytest.raises(TypeError, match='to_float32'):
        random_square_collate([data], [40], to_float32=False)


# random_square_collate


def as_tensor(img):
    return torch.from_numpy(img).permute(2, 0, 1).contiguous()


def instances(boxes, box_type=HorizontalBoxes):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return InstanceData(
        bboxes=box_type(boxes), labels=torch.arange(len(boxes))
    )


def packed(img, boxes=(), ignored=(), **box_type):
    sample = DetDataSample(metainfo=dict(img_shape=img.shape[:2]))
    sample.gt_instances = instances(boxes, **box_type)
    sample.ignored_instances = instances(ignored, **box_type)
    return dict(inputs=as_tensor(img), data_samples=sample)


def test_sizes_and_interpolations_are_uniform_and_independent():
    """Told from the pixels: what was drawn is nowhere written down."""
    img, sizes = photo(8, 8), (3, 5, 6, 7, 9)
    pixels = img.astype(np.float32)
    expected = {
        size: torch.stack(
            [
                as_tensor(imresize(pixels, (size, size), interpolation=name))
                for name in INTERPOLATIONS
            ]
        )
        for size in sizes
    }
    data = dict(inputs=as_tensor(img), data_samples=DetDataSample())
    counts = np.zeros((len(sizes), len(INTERPOLATIONS)), int)
    for _ in range(10_000):
        resized = random_square_collate([data], sizes)['inputs'][0]
        size = resized.shape[-1]
        distances = (expected[size] - resized).abs().amax(dim=(1, 2, 3))
        assert distances.min() < 1e-3
        counts[sizes.index(size), distances.argmin()] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 0.01


PLACE = st.floats(-5, 45, width=32)
CORNERS = st.lists(st.tuples(PLACE, PLACE, PLACE, PLACE), max_size=4)


@pytest.mark.parametrize('interpolation', ['bicubic', 'lanczos'])
def test_overshoot_stays_unless_bytes_are_asked_for(interpolation):
    img = np.zeros((24, 24, 3), np.uint8)
    img[:, 12:] = 255
    batch = random_square_collate([packed(img)], [40], [interpolation])
    assert batch['inputs'].min() < -5 and batch['inputs'].max() > 260
    clipped = random_square_collate(
        [packed(img)], [40], [interpolation], to_float32=False
    )
    assert clipped['inputs'].dtype == torch.uint8
    difference = clipped['inputs'] - batch['inputs'].clamp(0, 255)
    assert difference.abs().max() <= 1


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 40), CORNERS),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 50) | st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.booleans(),
)
def test_boxes_keep_their_place_in_the_image(scenes, size, plain):
    box_type = dict(box_type=torch.Tensor) if plain else {}
    given_boxes, data = [], []
    for height, width, corners in scenes:
        corners = np.array(corners, np.float32).reshape(-1, 2, 2)
        boxes = np.sort(corners, axis=1).reshape(-1, 4)
        given_boxes.append(boxes)
        data.append(
            packed(photo(height, width), boxes, boxes[::-1].copy(), **box_type)
        )
    batch = random_square_collate(data, [size], ['nearest'])
    samples, size = batch['data_samples'], tuple(batch['inputs'].shape[2:])
    triples = zip(samples, given_boxes, scenes, strict=True)
    for sample, boxes, (height, width, _) in triples:
        scale = (size[1] / width, size[0] / height)
        expected = (boxes * np.tile(scale, 2)).clip(0, 2 * size[::-1])
        for found, wanted in (
            (sample.gt_instances, expected),
            (sample.ignored_instances, expected[::-1]),
        ):
            assert isinstance(found.bboxes, torch.Tensor) == plain
            boxes = found.bboxes if plain else found.bboxes.tensor
            np.testing.assert_allclose(boxes, wanted, rtol=1e-4, atol=1e-4)
            assert found.labels.tolist() == list(range(len(expected)))
        assert sample.img_shape == size
        assert sample.scale_factor == pytest.approx(scale)


# All of them


def test_cached_randomness_repeats_what_was_done():
    crop, distortion = MaxIoURandomCrop(), MultiplicativeColorDistortion()
    with cache_random_params(crop), cache_random_params(distortion):
        results = [
            distortion(crop(scene([(10, 10, 50, 50)], img=photo(60, 90))))
            for _ in range(3)
        ]
    for result in results[1:]:
        np.testing.assert_array_equal(result['img'], results[0]['img'])


COLLATE = partial(random_square_collate, [packed(photo(5, 5))])
BAD_SIZES = ([], 416, [416.0], [[416, 0]], [[416]])
BAD = [
    (MaxIoURandomCrop, 'thresholds', []),
    (MaxIoURandomCrop, 'thresholds', 0.5),
    (MaxIoURandomCrop, 'thresholds', (0.5, 1.5)),
    (MaxIoURandomCrop, 'scales', (0.0, 1.0)),
    (MaxIoURandomCrop, 'scales', (0.3, 1.2)),
    (MaxIoURandomCrop, 'scales', (0.9, 0.3)),
    (MaxIoURandomCrop, 'scales', 0.3),
    (MaxIoURandomCrop, 'aspect_ratios', (0, 2)),
    (MaxIoURandomCrop, 'aspect_ratios', (1.5, 2)),
    (MaxIoURandomCrop, 'num_attempts', 0),
    (MultiplicativeColorDistortion, 'brightness', (-0.5, 1.5)),
    (MultiplicativeColorDistortion, 'contrast', (1.5, 0.5)),
    (MultiplicativeColorDistortion, 'saturation', 1.5),
    (MultiplicativeColorDistortion, 'hue', (-200, 18)),
    (MultiplicativeColorDistortion, 'prob', 1.5),
    *((COLLATE, 'sizes', value) for value in BAD_SIZES),
    *((COLLATE, 'interpolations', value) for value in ('area', ['cubic'])),
]


@pytest.mark.parametrize(('kind', 'name', 'value'), BAD)
def test_bad_arguments_are_named(kind, name, value):
    with pytest.raises(ValueError, match=f'^{name} must be '):
        kind(**{name: value})


def test_other_images_and_annotations_are_refused():
    with pytest.raises(TypeError, match='uint8'):
        MultiplicativeColorDistortion()(dict(img=photo()[..., :2]))
    others = type('Others', (BaseBoxes,), dict(box_dim=4))
    others.__abstractmethods__ = frozenset()
    with pytest.raises(TypeError, match='HorizontalBoxes, got Others'):
        MaxIoURandomCrop()(dict(gt_bboxes=others(torch.zeros(1, 4))))
    floats, masks, proposals = (packed(photo(5, 5)) for _ in range(3))
    floats['inputs'] = floats['inputs'].double()
    masks['data_samples'].gt_instances.masks = torch.zeros(0, 5, 5)
    proposals['data_samples'].proposals = InstanceData()
    for data, word in (
        (floats, 'uint8'),
        (masks, 'masks'),
        (proposals, 'proposals'),
    ):
        with pytest.raises((TypeError, ValueError), match=word):
            random_square_collate([data])


@pytest.mark.smoke
@pytest.mark.parametrize('workers', [0, 2])
def test_a_loader_feeds_the_preprocessor(workers):
    data = [packed(photo(20, 30 + i), [(0, 0, 9, 9)]) for i in range(4)]
    loader = dict(
        dataset=data,
        batch_size=2,
        num_workers=workers,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(
            type='anchorformer_mm.random_square_collate', sizes=[64, 96]
        ),
    )
    mean, std = [120.0, 110.0, 100.0], [60.0, 55.0, 50.0]
    preprocessor = MODELS.build(
        dict(type='DetDataPreprocessor', mean=mean, std=std, bgr_to_rgb=True)
    )
    for batch in Runner.build_dataloader(loader, seed=0):
        size = batch['inputs'].shape[-1]
        assert batch['inputs'].shape == (2, 3, size, size)
        rgb = batch['inputs'].flip(1)
        found = preprocessor(batch, training=True)
        # Normalised, and not padded.
        expected = rgb - torch.tensor(mean).view(3, 1, 1)
        expected = expected / torch.tensor(std).view(3, 1, 1)
        torch.testing.assert_close(found['inputs'], expected)
        for sample in found['data_samples']:
            assert sample.pad_shape == sample.img_shape == (size, size)
            assert isinstance(sample.gt_instances.bboxes, torch.Tensor)


def test_configs_find_them_by_their_names():
    for kind in (MaxIoURandomCrop, MultiplicativeColorDistortion):
        built = TRANSFORMS.build(dict(type=f'anchorformer_mm.{kind.__name__}'))
        assert type(built) is kind
    found = FUNCTIONS.get('anchorformer_mm.random_square_collate')
    assert found is random_square_collate
