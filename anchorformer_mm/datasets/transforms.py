"""PicoDet's augmentation: random crop, colour distortion, multi-scale batches.

Importing this needs mmdet.
"""

from collections.abc import Callable, Sequence
from math import inf

import cv2
import numpy as np
import torch
from mmcv.image import imresize
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import (
    BaseBoxes,
    HorizontalBoxes,
    autocast_box_type,
    bbox_overlaps,
    scale_boxes,
)
from mmengine.structures import BaseDataElement
from PIL import Image, ImageEnhance
from torch import Tensor

from anchorformer_mm.models.argument_checks import (
    check_fractions,
    check_positive,
    is_count,
    is_fraction,
    is_number,
)
from anchorformer_mm.registry import FUNCTIONS, TRANSFORMS

INTERPOLATIONS = ('nearest', 'bilinear', 'area', 'bicubic', 'lanczos')


def check_list(
    name: str, value: Sequence, is_valid: Callable, rule: str
) -> None:
    """Raise a ValueError unless all of one or more items are valid."""
    is_list = isinstance(value, (tuple, list)) and value
    if not is_list or not all(map(is_valid, value)):
        raise ValueError(f'{name} must be a list of {rule}, got {value!r}')


def check_interval(
    name: str, value: tuple[float, float], low: float, high: float
) -> tuple[float, float]:
    """Return ``value`` as two floats a, b with low <= a <= b <= high."""
    rule = f'two numbers (a, b) with {low} <= a <= b <= {high}'
    check_list(name, value, is_number, rule)
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise ValueError(f'{name} must be {rule}, got {value!r}')
    return float(value[0]), float(value[1])


@TRANSFORMS.register_module()
class MaxIoURandomCrop(BaseTransform):
    r"""Random crop whose window overlaps at least one box enough.

    The thresholds, and the choice to leave the image whole, are tried in
    random order. For a threshold :math:`t`, windows of scale
    :math:`s \sim U(scales)` and relative aspect ratio
    :math:`a \sim U(\max(a_{min}, s^2), \min(a_{max}, s^{-2}))` are drawn,

    .. math:: w = \lfloor W s \sqrt a \rfloor, \quad
              h = \lfloor H s / \sqrt a \rfloor,

    with their corner uniform over the whole pixels of
    :math:`[0, W - w) \times [0, H - h)`. The first window wins whose
    **largest** IoU with a box is at least :math:`t` and that keeps a box. A
    box is kept, and clipped to the window, if its centre lies in the window
    and something of it is left. mmdet's ``MinIoURandomCrop`` bounds the
    least IoU over all boxes instead, and draws width and height freely.

    Boxes flagged in ``gt_ignore_flags`` follow the window but have no say in
    it. An image without other boxes, or for which every try fails, stays
    whole. As in the original, a window smaller than the image never touches
    its right or lower edge.

    The rule is that of ``RandomCrop`` of PaddleDetection,
    ``ppdet/data/transform/operators.py``, with its default settings.

    Args:
        thresholds: Least IoUs, each in [0, 1].
        scales: Interval of s in (0, 1].
        aspect_ratios: Interval of a around 1, relative to the image's own
            aspect ratio.
        num_attempts: Windows tried for each threshold, at least 1.
        allow_no_crop: Whether the image may stay whole by choice.

    Required keys: img (H, W, C), gt_bboxes (N boxes, in px). Cropped and
    filtered along, where present: gt_bboxes_labels and gt_ignore_flags (N,),
    gt_masks (N), gt_seg_map (H, W). Modified: img_shape.

    Raises:
        ValueError: An argument is outside of what is stated above.
        TypeError: The boxes of an image are not horizontal ones.
    """

    def __init__(
        self,
        thresholds: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
        scales: tuple[float, float] = (0.3, 1.0),
        aspect_ratios: tuple[float, float] = (0.5, 2.0),
        num_attempts: int = 50,
        allow_no_crop: bool = True,
    ) -> None:
        check_list('thresholds', thresholds, is_fraction, 'IoUs in [0, 1]')
        check_positive(num_attempts=num_attempts)
        self.thresholds = tuple(thresholds)
        self.scales = check_interval('scales', scales, 0, 1)
        self.aspect_ratios = check_interval(
            'aspect_ratios', aspect_ratios, 0, inf
        )
        if self.scales[0] == 0:
            raise ValueError(f'scales must be above 0, got {scales!r}')
        if not 0 < self.aspect_ratios[0] <= 1 <= self.aspect_ratios[1]:
            # Else no ratio is left for scales near 1.
            raise ValueError(
                'aspect_ratios must be positive and enclose 1, got '
                f'{aspect_ratios!r}'
            )
        self.num_attempts = num_attempts
        self.allow_no_crop = allow_no_crop

    @autocast_box_type()
    def transform(self, results: dict) -> dict:
        """Crop ``results`` in place and return it; see the class."""
        boxes = results['gt_bboxes']
        if not isinstance(boxes, HorizontalBoxes):
            raise TypeError(
                'MaxIoURandomCrop needs gt_bboxes as HorizontalBoxes, got '
                f'{type(boxes).__name__}'
            )
        boxes = counted = boxes.tensor
        ignored = results.get('gt_ignore_flags')
        if ignored is not None:
            counted = boxes[torch.from_numpy(~ignored.astype(bool))]
        if len(counted) == 0:
            return results
        size = results['img'].shape[:2]
        for threshold, windows in self._random_windows(*size):
            if threshold is None:
                return results
            window = first_accepted(windows, counted, threshold)
            if window is not None:
                self._crop(results, window, kept_boxes(window[None], boxes)[0])
                return results
        return results

    @cache_randomness
    def _random_windows(
        self, height: int, width: int
    ) -> list[tuple[float | None, Tensor]]:
        """Thresholds (None: the whole image) and windows (n, 4), in order."""
        shape = (len(self.thresholds), self.num_attempts)
        scale = np.random.uniform(*self.scales, shape)
        low, high = self.aspect_ratios
        bounds = np.maximum(low, scale**2), np.minimum(high, scale**-2)
        root = np.sqrt(np.random.uniform(*bounds))
        w = (width * (scale * root)).astype(int)
        h = (height * (scale / root)).astype(int)
        x = np.random.randint(0, np.maximum(width - w, 1))
        y = np.random.randint(0, np.maximum(height - h, 1))
        windows = np.stack([x, y, x + w, y + h], axis=-1)
        windows = torch.from_numpy(windows.astype(np.float32))
        choices = list(zip(self.thresholds, windows, strict=True))
        if self.allow_no_crop:
            choices.append((None, windows.new_empty(0, 4)))
        return [choices[i] for i in np.random.permutation(len(choices))]

    @staticmethod
    def _crop(results: dict, window: Tensor, kept: Tensor) -> None:
        """Cut the image and its annotations to the ``kept`` (N,) boxes."""
        x1, y1, x2, y2 = window.int().tolist()
        boxes = results['gt_bboxes'][kept]
        boxes.translate_([-x1, -y1])
        boxes.clip_([y2 - y1, x2 - x1])
        results['gt_bboxes'] = boxes
        kept = kept.numpy()
        for key in ('gt_bboxes_labels', 'gt_ignore_flags'):
            if results.get(key) is not None:
                results[key] = results[key][kept]
        if results.get('gt_masks') is not None:
            masks = results['gt_masks'][kept.nonzero()[0]]
            results['gt_masks'] = masks.crop(np.array([x1, y1, x2, y2]))
        for key in ('img', 'gt_seg_map'):
            if results.get(key) is not None:
                results[key] = results[key][y1:y2, x1:x2]
        results['img_shape'] = results['img'].shape[:2]

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(thresholds={self.thresholds}, '
            f'scales={self.scales}, aspect_ratios={self.aspect_ratios}, '
            f'num_attempts={self.num_attempts}, '
            f'allow_no_crop={self.allow_no_crop})'
        )


def first_accepted(
    windows: Tensor, boxes: Tensor, threshold: float
) -> Tensor | None:
    """Find the first of the windows (M, 4) that a threshold accepts.

    Its largest IoU with a box (N, 4) reaches the threshold, and it keeps one.
    """
    overlaps = bbox_overlaps(windows, boxes).amax(dim=1)
    accepted = (overlaps >= threshold) & kept_boxes(windows, boxes).any(dim=1)
    indices = accepted.nonzero()
    return windows[indices[0, 0]] if len(indices) else None


def kept_boxes(windows: Tensor, boxes: Tensor) -> Tensor:
    """Tell (M, N) which of the boxes (N, 4) each window (M, 4) keeps.

    Those are the boxes whose centre is inside, the right and lower edge of
    the window excluded, and of which some area is.
    """
    start, end = windows[:, None, :2], windows[:, None, 2:]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = (start <= centres) & (centres < end)
    lower, upper = boxes[:, :2].maximum(start), boxes[:, 2:].minimum(end)
    return (inside & (lower < upper)).all(dim=-1)


@TRANSFORMS.register_module()
class MultiplicativeColorDistortion(BaseTransform):
    """Random factors of brightness, contrast and saturation, and a hue turn.

    The four are taken in random order, each with probability ``prob`` and an
    amount drawn uniformly from its interval. Factors act as Pillow's
    ``ImageEnhance``: 1 changes nothing, 0 leaves black, the mean grey, or
    the grey image. The hue is turned by steps of Pillow's byte, truncated:
    18 of them are about 25 degrees. mmdet's ``PhotoMetricDistortion`` adds
    to the brightness instead, has a smaller turn and permutes channels.

    The rule is that of ``RandomDistort`` in today's PaddleDetection
    (``ppdet/data/transform/operators.py``, since September 2023), or with
    ``legacy`` of the one under which the published PicoDet models were
    trained, which works on floats without bounds: the brightness adds 0.5 to
    1.5 grey levels, the contrast multiplies, the saturation acts as above, and
    the hue (in YIQ) turns by that many half circles, so by any angle.

    Args:
        brightness: Interval of factors, from 0 upward.
        contrast: Likewise.
        saturation: Likewise.
        hue: Interval of turns in 1/256 of the circle, within [-128, 128].
        prob: Probability in [0, 1] of each of the four.
        legacy: Whether to distort as in 2021 and 2022; images become float32.

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
        legacy: bool = False,
    ) -> None:
        factors = dict(
            brightness=brightness, contrast=contrast, saturation=saturation
        )
        self.intervals = {
            name: check_interval(name, value, 0, inf)
            for name, value in factors.items()
        } | dict(hue=check_interval('hue', hue, -128, 128))
        check_fractions(prob=prob)
        self.prob = prob
        self.legacy = legacy

    def transform(self, results: dict) -> dict:
        """Distort ``results['img']`` and return ``results``."""
        img = results['img']
        if img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] != 3:
            raise TypeError(
                'MultiplicativeColorDistortion needs img as uint8 (H, W, 3), '
                f'got {img.dtype} {img.shape}'
            )
        distortions = self._random_distortions()
        if self.legacy:
            results['img'] = distort_without_bounds(img, distortions)
        elif distortions:
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
        return (
            f'{type(self).__name__}({intervals}, prob={self.prob}, '
            f'legacy={self.legacy})'
        )


def distort(
    img: np.ndarray, distortions: Sequence[tuple[str, float]]
) -> np.ndarray:
    """Apply (name, amount) one after the other to a BGR uint8 (H, W, 3)."""
    enhancers = dict(
        brightness=ImageEnhance.Brightness,
        contrast=ImageEnhance.Contrast,
        saturation=ImageEnhance.Color,
    )
    image = Image.fromarray(cv2.cvtColor(img, cv2.COLOR_BGR2RGB))
    for name, amount in distortions:
        if name == 'hue':
            # Pillow keeps the hue in a byte.
            turned = (np.arange(256) + amount).astype(int) % 256
            table = turned.tolist() + 2 * list(range(256))
            image = image.convert('HSV').point(table).convert('RGB')
        else:
            image = enhancers[name](image).enhance(amount)
    return cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)


# From RGB to YIQ and back, as the original rounds them.
TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]]
)
TO_RGB = np.array(
    [[1.0, 0.956, 0.621], [1.0, -0.272, -0.647], [1.0, -1.107, 1.705]]
)


def distort_without_bounds(
    img: np.ndarray, distortions: Sequence[tuple[str, float]]
) -> np.ndarray:
    """Apply (name, amount) to a BGR uint8 (H, W, 3) by the law of 2021.

    All are affine maps of a colour, so they become one; gives float32.
    """
    total = np.eye(3, 4)
    for name, amount in distortions:
        step = amount * np.eye(3)
        if name == 'brightness':
            total[:, 3] += amount
            continue
        if name == 'saturation':
            step += (1 - amount) * TO_YIQ[0]
        elif name == 'hue':
            u, w = np.cos(amount * np.pi), np.sin(amount * np.pi)
            turn = np.array([[1, 0, 0], [0, u, -w], [0, w, u]])
            step = TO_RGB @ turn @ TO_YIQ
        total = step @ total
    of_bgr = np.c_[total[::-1, 2::-1], total[::-1, 3]]
    return cv2.transform(img.astype(np.float32), of_bgr)


@FUNCTIONS.register_module()
def random_square_collate(
    data_batch: Sequence[dict],
    sizes: Sequence[int | Sequence[int]] = (352, 384, 416, 448, 480),
    interpolations: Sequence[str] = INTERPOLATIONS,
    to_float32: bool = True,
) -> dict:
    """Resize the images of a batch to one size, and stack them.

    Size and interpolation are drawn uniformly for each batch, the aspect
    ratio is not kept, and boxes are resized along and clipped to the image.
    As a collate function this runs in the loader's workers, on images of any
    shape, once, and before they are normalised, as in the original, and each
    process of a distributed training draws for itself.

    ``BatchRandomResize`` and ``Resize`` of PaddleDetection,
    ``ppdet/data/transform``, do the same on floats, so that bicubic and
    Lanczos overshoot is neither clipped nor rounded; ``to_float32=False``
    does both and takes a quarter of the workers' shared memory.

    Args:
        data_batch: Of the pipeline's last step ``PackDetInputs``: inputs,
            uint8 or float32 (C, H, W), H and W of each image its own;
            data_samples with boxes and labels.
        sizes: Sizes in px to choose from: of squares, or (height, width).
        interpolations: Names to choose from, of :func:`mmcv.imresize`.
        to_float32: Whether images are resized, and given, as float32 rather
            than uint8.

    Returns:
        inputs (B, C, height, width) and data_samples, a list of B with
        ``img_shape`` and ``scale_factor`` (width, height) brought up to date.

    Raises:
        ValueError: sizes or interpolations are not of the stated kind, or a
            sample has annotations other than boxes and labels.
        TypeError: An image is not uint8 or float32 (C, H, W), or not uint8
            where that is to be given.
    """
    known = INTERPOLATIONS.__contains__
    kind = 'ints >= 1 or pairs (height, width) of them'
    check_list('sizes', sizes, _is_size, kind)
    check_list('interpolations', interpolations, known, f'{INTERPOLATIONS}')
    size = sizes[np.random.randint(len(sizes))]
    size = (size, size) if is_count(size) else tuple(size)
    interpolation = interpolations[np.random.randint(len(interpolations))]
    images = [data['inputs'] for data in data_batch]
    samples = [data['data_samples'] for data in data_batch]
    for image, sample in zip(images, samples, strict=True):
        _resize_sample(sample, image, size)
    if not to_float32 and any(image.is_floating_point() for image in images):
        raise TypeError('to_float32=False needs images as uint8')
    dtype = np.float32 if to_float32 else np.uint8
    batch = np.empty((len(images), len(images[0]), *size), dtype)
    for image, resized in zip(images, batch, strict=True):
        # Channel by channel: neither the image nor the result is transposed.
        for plane, out in zip(image.numpy(), resized, strict=True):
            plane = plane.astype(dtype, copy=False)
            imresize(
                plane, size[::-1], False, interpolation, out, backend='cv2'
            )
    return dict(inputs=torch.from_numpy(batch), data_samples=samples)


def _is_size(value: object) -> bool:
    if isinstance(value, Sequence) and len(value) == 2:
        return all(map(is_count, value))
    return is_count(value)


def _resize_sample(
    sample: DetDataSample, image: Tensor, size: tuple[int, int]
) -> None:
    """Bring the annotations of ``image`` (C, H, W) to ``size``, in place."""
    if image.dtype not in (torch.uint8, torch.float32) or image.ndim != 3:
        raise TypeError(
            'random_square_collate needs images as uint8 or float32 (C, H, W),'
            f' got {image.dtype} {tuple(image.shape)}'
        )
    height, width = image.shape[-2:]
    scale = (size[1] / width, size[0] / height)
    _refuse_fields(sample, {'gt_instances', 'ignored_instances'})
    for _, instances in sample.items():
        _refuse_fields(instances, {'bboxes', 'labels'})
        if 'bboxes' not in instances:
            continue
        boxes = scale_boxes(instances.bboxes, scale)
        if isinstance(boxes, BaseBoxes):
            boxes.clip_(size)
        else:
            boxes = boxes.clamp(min=0).minimum(
                boxes.new_tensor(2 * size[::-1])
            )
        instances.bboxes = boxes
    before = sample.get('scale_factor', (1.0, 1.0))
    after = (before[0] * scale[0], before[1] * scale[1])
    sample.set_metainfo(dict(img_shape=size, scale_factor=after))


def _refuse_fields(element: BaseDataElement, allowed: set[str]) -> None:
    unknown = sorted(set(element.keys()) - allowed)
    if unknown:
        raise ValueError(
            f'random_square_collate resizes {sorted(allowed)} only, got '
            f'{unknown}: load nothing but boxes and labels'
        )
