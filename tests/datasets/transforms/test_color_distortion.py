import colorsys
from itertools import compress, permutations, product

import numpy as np
import pytest
from mmcv.transforms.utils import cache_random_params
from mmdet.registry import TRANSFORMS
from PIL import Image
from scipy import stats

from anchorformer_mm.datasets.transforms import MultiplicativeColorDistortion
from anchorformer_mm.datasets.transforms import (
    distort,
)

DRAWS = 10_000
NAMES = ('brightness', 'contrast', 'saturation', 'hue')
RED, GREEN, BLUE = (0, 0, 255), (0, 255, 0), (255, 0, 0)


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)


def photo(height=33, width=47):
    return np.random.default_rng(0).integers(
        0, 256, (height, width, 3), np.uint8
    )


def pixel(colour):
    return np.array([[colour]], np.uint8)


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


def test_red_is_red_in_bgr():
    assert distort(pixel(RED), [('saturation', 0)]).tolist() == [[[76] * 3]]
    assert distort(pixel(BLUE), [('saturation', 0)]).tolist() == [[[29] * 3]]


def test_a_third_of_the_circle_turns_red_to_green_to_blue():
    # Pillow's byte of hue is 85 for green and 170 for blue.
    assert distort(pixel(RED), [('hue', 85)]).tolist() == [[list(GREEN)]]
    assert distort(pixel(GREEN), [('hue', 85)]).tolist() == [[list(BLUE)]]
    assert distort(pixel(BLUE), [('hue', -170)]).tolist() == [[list(RED)]]


@pytest.mark.parametrize('turn', [-18, 18])
def test_the_widest_turn_is_about_25_degrees(turn):
    blue, green, red = distort(pixel((40, 90, 200)), [('hue', turn)])[0, 0]
    before = colorsys.rgb_to_hsv(200, 90, 40)
    after = colorsys.rgb_to_hsv(int(red), int(green), int(blue))
    turned = ((after[0] - before[0] + 0.5) % 1 - 0.5) * 360
    assert turned == pytest.approx(np.sign(turn) * 25.4, abs=2.5)
    assert after[1:] == pytest.approx(before[1:], rel=0.02)


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


def test_distortions_are_taken_in_the_given_order():
    img = photo()
    steps = [('contrast', 0.5), ('brightness', 1.5), ('hue', 9.0)]
    one_by_one = img
    for step in steps:
        one_by_one = distort(one_by_one, [step])
    np.testing.assert_array_equal(distort(img, steps), one_by_one)
    assert (distort(img, steps[::-1]) != one_by_one).any()


def test_presence_order_and_amounts_follow_the_stated_laws():
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
        law = stats.uniform(0.5, 1)
        if name == 'hue':
            law = stats.uniform(-18, 36)
        assert stats.kstest(amounts, law.cdf).pvalue > 0.01, name


def test_intervals_and_probability_are_the_given_ones():
    cfg = dict(
        brightness=(0.9, 0.9),
        contrast=(1.1, 1.1),
        saturation=(1.2, 1.2),
        hue=(3, 3),
    )
    cfg = dict(type='anchorformer_mm.MultiplicativeColorDistortion', **cfg)
    always = TRANSFORMS.build(cfg | dict(prob=1))
    amounts = dict(always._random_distortions())
    assert amounts == dict(brightness=0.9, contrast=1.1, saturation=1.2, hue=3)
    never = TRANSFORMS.build(cfg | dict(prob=0))
    img = photo()
    assert never(dict(img=img))['img'] is img


def test_image_alone_is_changed_and_not_in_place():
    img = photo()
    results = dict(img=img.copy(), gt_bboxes='boxes', img_shape=(33, 47))
    cropped = results['img'][3:, 5:]
    results['img'] = cropped
    found = MultiplicativeColorDistortion(prob=1)(results)
    np.testing.assert_array_equal(cropped, img[3:, 5:])
    assert (found['img'] != cropped).any()
    assert found['img'].shape == cropped.shape
    assert found['img'].dtype == np.uint8
    assert found['gt_bboxes'] == 'boxes'


def test_cached_randomness_repeats_the_distortion():
    transform, img = MultiplicativeColorDistortion(prob=1), photo()
    with cache_random_params(transform):
        first, second = (transform(dict(img=img))['img'] for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    'img', [photo().astype(np.float32), photo()[..., 0], photo()[..., :2]]
)
def test_other_images_are_refused(img):
    with pytest.raises(TypeError, match=r'uint8 \(H, W, 3\), got .*33, 47'):
        MultiplicativeColorDistortion()(dict(img=img))


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        (dict(brightness=(-0.5, 1.5)), r'brightness .* got \(-0\.5, 1\.5\)'),
        (dict(contrast=(1.5, 0.5)), r'contrast .* got \(1\.5, 0\.5\)'),
        (dict(saturation=1.5), r'saturation must be two numbers, got 1\.5'),
        (dict(hue=(-200, 18)), r'hue .* got \(-200, 18\)'),
        (dict(prob=1.5), r'prob .* got 1\.5'),
    ],
)
def test_bad_arguments_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        MultiplicativeColorDistortion(**bad)
