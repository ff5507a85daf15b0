"""Task-aligned assignment as PicoDet v2 has it."""

from collections.abc import Sequence

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from anchorformer_mm.models.task_modules.batch_matching import (
    GroundTruth,
    Matches,
    inside,
    settle,
    top_indices,
)
from anchorformer_mm.registry import TASK_UTILS

# Keeps the ratio of two alignments finite.
_EPS = 1e-9


@TASK_UTILS.register_module()
class PicoTaskAlignedAssigner:
    """Task-aligned assignment.

    `TOOD: Task-aligned One-stage Object Detection
    <https://arxiv.org/abs/2108.07755>`_. The alignment of a prior and a box
    is ``score ** alpha * IoU ** beta``, with the predicted score of the
    box's class and the IoU of the predicted box. Of the priors inside it a
    box takes the ``topk`` with the largest alignment. The class score of a
    positive is its alignment, scaled such that the best of a box has the
    largest IoU of that box's positives.

    mmdet's assigner of this name takes the ``topk`` of all priors first and
    then drops those outside, which can leave a box without any; and a prior
    claimed by several boxes goes to the claimant that it overlaps most;
    here, as in the original, to any box of the image.

    Nothing is differentiated, and of equally aligned priors the one with the
    lower index is taken.

    Args:
        topk: Priors that a box takes; all inside it if there are fewer.
        alpha: Exponent of the score.
        beta: Exponent of the IoU.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self, topk: int = 13, alpha: float = 1.0, beta: float = 6.0
    ) -> None:
        if not isinstance(topk, int) or topk < 1:
            raise ValueError(f'topk must be an integer >= 1, got {topk!r}')
        for name, value in (('alpha', alpha), ('beta', beta)):
            if not value >= 0:
                raise ValueError(f'{name} must be >= 0, got {value!r}')
        self.topk = topk
        self.alpha = alpha
        self.beta = beta

    @torch.no_grad()
    def assign_batch(
        self,
        scores: Tensor,
        boxes: Tensor,
        priors: Tensor,
        gts: GroundTruth,
        level_sizes: Sequence[int] | None = None,
    ) -> Matches:
        """Assign the ``n`` priors of each of ``B`` images.

        Args:
            scores: ``(B, n, num_classes)``, probabilities.
            boxes: ``(B, n, 4)``, predictions, ``xyxy`` in pixels.
            priors: ``(n, 4)``, centre and strides in pixels.
            gts: The boxes of all images.
            level_sizes: Not used: the levels compete.

        Returns:
            The positives of the batch.
        """
        overlaps = bbox_overlaps(gts.boxes[:, None], boxes[gts.images])
        overlaps = overlaps.squeeze(1)
        class_scores = scores[gts.images, :, gts.labels]
        alignment = class_scores**self.alpha * overlaps**self.beta
        eligible = alignment * inside(priors[:, :2], gts.boxes)

        candidates = top_indices(eligible, self.topk)
        rows, order = (eligible.gather(1, candidates) > 0).nonzero().unbind(1)
        cells, matched = settle(
            rows, candidates[rows, order], overlaps, gts.images
        )
        columns = cells % len(priors)
        alignment = alignment[matched, columns]
        best = _largest_of_each(alignment, matched, len(gts.boxes))
        best_iou = _largest_of_each(
            overlaps[matched, columns], matched, len(gts.boxes)
        )
        quality = alignment / (best + _EPS) * best_iou
        return Matches(cells, matched, quality)


def _largest_of_each(values: Tensor, boxes: Tensor, count: int) -> Tensor:
    """For each of ``p`` values the largest of those with the same box.

    Args:
        values: ``(p,)``, at least 0.
        boxes: ``(p,)``, below ``count``.
        count: Number of boxes.

    Returns:
        ``(p,)``.
    """
    largest = values.new_zeros(count)
    return largest.scatter_reduce_(0, boxes, values, 'amax')[boxes]
