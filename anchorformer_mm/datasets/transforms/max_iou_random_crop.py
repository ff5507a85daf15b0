"""PicoDet's random crop: the largest overlap with a box decides."""

from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmdet.structures.bbox import (
    HorizontalBoxes,
    autocast_box_type,
    bbox_overlaps,
)
from torch import Tensor

from anchorformer_mm.datasets.transforms.argument_checks import check_interval
from anchorformer_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class MaxIoURandomCrop(BaseTransform):
    r"""Crop a random window that overlaps at least one box enough.

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

    The law is that of ``RandomCrop`` of PaddleDetection,
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
        if (
            not isinstance(thresholds, (tuple, list))
            or not thresholds
            or not all(isinstance(t, Real) and 0 <= t <= 1 for t in thresholds)
        ):
            raise ValueError(
                'thresholds must be a sequence of IoUs in [0, 1], at least '
                f'one, got {thresholds!r}'
            )
        if type(num_attempts) is not int or num_attempts < 1:
            raise ValueError(
                f'num_attempts must be an int >= 1, got {num_attempts!r}'
            )
        self.thresholds = tuple(thresholds)
        self.scales = check_interval('scales', scales, 0, 1)
        self.aspect_ratios = check_interval(
            'aspect_ratios', aspect_ratios, 0, float('inf')
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
        boxes = boxes.tensor
        ignored = results.get('gt_ignore_flags')
        if ignored is None:
            counted = boxes
        else:
            counted = boxes[torch.from_numpy(~ignored.astype(bool))]
        if len(counted) == 0:
            return results
        for threshold, windows in self._random_windows(
            *results['img'].shape[:2]
        ):
            if threshold is None:
                return results
            window = first_accepted(windows, counted, threshold)
            if window is not None:
                _crop(results, window, kept_boxes(window[None], boxes)[0])
                return results
        return results

    @cache_randomness
    def _random_windows(
        self, height: int, width: int
    ) -> list[tuple[float | None, Tensor]]:
        """Draw every threshold's windows, in the random order of trial.

        Returns:
            (threshold, windows (num_attempts, 4) as x1, y1, x2, y2 in px);
            no threshold stands for the whole image.
        """
        shape = (len(self.thresholds), self.num_attempts)
        scale = np.random.uniform(*self.scales, shape)
        low, high = self.aspect_ratios
        root = np.sqrt(
            np.random.uniform(
                np.maximum(low, scale**2), np.minimum(high, scale**-2)
            )
        )
        w = (width * (scale * root)).astype(int)
        h = (height * (scale / root)).astype(int)
        x = np.random.randint(0, np.maximum(width - w, 1))
        y = np.random.randint(0, np.maximum(height - h, 1))
        windows = torch.from_numpy(
            np.stack([x, y, x + w, y + h], axis=-1).astype(np.float32)
        )
        choices = list(zip(self.thresholds, windows, strict=True))
        if self.allow_no_crop:
            choices.append((None, windows.new_empty(0, 4)))
        return [choices[i] for i in np.random.permutation(len(choices))]

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
    """The first of M windows whose largest IoU with one of N boxes is at
    least ``threshold`` and that keeps a box.

    Args:
        windows: (M, 4) as x1, y1, x2, y2.
        boxes: (N, 4), N >= 1.
        threshold: Least IoU.

    Returns:
        (4,), or nothing if there is no such window.
    """
    overlaps = bbox_overlaps(windows, boxes).amax(dim=1)
    accepted = (overlaps >= threshold) & kept_boxes(windows, boxes).any(dim=1)
    indices = accepted.nonzero()
    return windows[indices[0, 0]] if len(indices) else None


def kept_boxes(windows: Tensor, boxes: Tensor) -> Tensor:
    """Which of N boxes each of M windows keeps: their centre is inside, the
    right and lower edge of a window excluded, and so is some area of them.

    Returns:
        bool (M, N).
    """
    start, end = windows[:, None, :2], windows[:, None, 2:]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = (start <= centres) & (centres < end)
    left = torch.maximum(boxes[:, :2], start) < torch.minimum(
        boxes[:, 2:], end
    )
    return (inside & left).all(dim=-1)


def _crop(results: dict, window: Tensor, kept: Tensor) -> None:
    """Cut the image and what belongs to it; ``kept`` (N,) are the boxes."""
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
    if results.get('gt_seg_map') is not None:
        results['gt_seg_map'] = results['gt_seg_map'][y1:y2, x1:x2]
    results['img'] = results['img'][y1:y2, x1:x2]
    results['img_shape'] = results['img'].shape[:2]
