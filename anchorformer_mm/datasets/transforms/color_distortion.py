"""PicoDet's colour distortion: factors, and a turn of the hue circle."""

from collections.abc import Sequence

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from PIL import Image, ImageEnhance

from anchorformer_mm.datasets.transforms.argument_checks import check_interval
from anchorformer_mm.registry import TRANSFORMS

ENHANCERS = dict(
    brightness=ImageEnhance.Brightness,
    contrast=ImageEnhance.Contrast,
    saturation=ImageEnhance.Color,
)
# Steps of a full turn: Pillow keeps the hue in a byte.
HUE_LEVELS = 256


@TRANSFORMS.register_module()
class MultiplicativeColorDistortion(BaseTransform):
    """Scale brightness, contrast and saturation and turn the hue of an image.

    The four are taken in random order, each with probability ``prob`` and an
    amount drawn uniformly from its interval. Factors act as Pillow's
    ``ImageEnhance``: 1 changes nothing, 0 leaves black, the mean grey, or
    the grey image. The hue is turned by steps of Pillow's byte, truncated:
    18 of them are about 25 degrees. mmdet's ``PhotoMetricDistortion`` adds
    to the brightness instead, has a smaller turn and permutes channels.

    The law is that of ``RandomDistort`` in today's PaddleDetection
    (``ppdet/data/transform/operators.py``, since September 2023). The older
    ``RandomDistort`` under which the published PicoDet models were trained
    worked on unbounded floats: it added 0.5 to 1.5 grey levels, multiplied
    by the factor of the contrast, and turned the hue (in YIQ) by any angle.

    Args:
        brightness: Interval of factors, from 0 upward.
        contrast: Likewise.
        saturation: Likewise.
        hue: Interval of turns in 1/256 of the circle, within [-128, 128].
        prob: Probability in [0, 1] of each of the four.

    Required and modified key: img, uint8 (H, W, 3), channels BGR.

    Raises:
        ValueError: An argument is outside of what is stated above.
        TypeError: The image is not of that type or shape.
    """

    def __init__(
        self,
        brightness: tuple[float, float] = (0.5, 1.5),
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: tuple[float, float] = (-18, 18),
        prob: float = 0.5,
    ) -> None:
        half = HUE_LEVELS // 2
        top = float('inf')
        self.intervals = dict(
            brightness=check_interval('brightness', brightness, 0, top),
            contrast=check_interval('contrast', contrast, 0, top),
            saturation=check_interval('saturation', saturation, 0, top),
            hue=check_interval('hue', hue, -half, half),
        )
        if not 0 <= prob <= 1:
            raise ValueError(f'prob must be in [0, 1], got {prob!r}')
        self.prob = prob

    def transform(self, results: dict) -> dict:
        """Distort ``results['img']`` and return ``results``."""
        img = results['img']
        if img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] != 3:
            raise TypeError(
                'MultiplicativeColorDistortion needs img as uint8 (H, W, 3), '
                f'got {img.dtype} {img.shape}'
            )
        distortions = self._random_distortions()
        if distortions:
            results['img'] = distort(img, distortions)
        return results

    @cache_randomness
    def _random_distortions(self) -> list[tuple[str, float]]:
        """Draw the names and amounts of what is done, in order."""
        names = np.random.permutation(list(self.intervals))
        return [
            (str(name), np.random.uniform(*self.intervals[name]))
            for name in names
            if np.random.uniform() < self.prob
        ]

    def __repr__(self) -> str:
        intervals = ', '.join(f'{k}={v}' for k, v in self.intervals.items())
        return f'{type(self).__name__}({intervals}, prob={self.prob})'


def distort(
    img: np.ndarray, distortions: Sequence[tuple[str, float]]
) -> np.ndarray:
    """Apply (name, amount) one after the other to a BGR uint8 (H, W, 3)."""
    image = Image.fromarray(cv2.cvtColor(img, cv2.COLOR_BGR2RGB))
    for name, amount in distortions:
        if name == 'hue':
            image = turn_hue(image, amount)
        else:
            image = ENHANCERS[name](image).enhance(amount)
    return cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Turn the hue of an RGB image by ``turn`` / 256 of the circle."""
    hues = (np.arange(HUE_LEVELS) + turn).astype(int) % HUE_LEVELS
    unchanged = list(range(256))
    hsv = image.convert('HSV')
    return hsv.point(hues.tolist() + 2 * unchanged).convert('RGB')
