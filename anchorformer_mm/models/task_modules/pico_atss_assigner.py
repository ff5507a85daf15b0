"""ATSS as PicoDet v2 has it, for the first epochs."""

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


@TASK_UTILS.register_module()
class PicoATSSAssigner:
    """Adaptive training sample selection on square anchors.

    `Bridging the Gap Between Anchor-based and Anchor-free Detection via
    Adaptive Training Sample Selection <https://arxiv.org/abs/1912.02424>`_.
    Every prior is an anchor of ``anchor_scale`` strides. The candidates of a
    box are, of every level, the ``topk`` anchors whose centres are nearest
    to its own. A candidate is positive where its IoU with the box exceeds
    the mean plus the standard deviation of the candidates' and its centre
    lies inside the box. The class score of a positive is the IoU of its
    predicted box.

    mmdet's assigner of this name is another in small things: there the IoU
    may also equal the threshold, the centre must be 0.01 pixels inside, and
    a prior claimed by several boxes goes to the claimant that it overlaps
    most; here, as in the original, to any box of the image.

    Nothing is differentiated, and of equally near anchors the one with the
    lower index is taken.

    Args:
        topk: Candidates of a box on each level; a level with fewer anchors
            gives all it has.
        anchor_scale: Side of an anchor in strides.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(self, topk: int = 9, anchor_scale: float = 5.0) -> None:
        if not isinstance(topk, int) or topk < 1:
            raise ValueError(f'topk must be an integer >= 1, got {topk!r}')
        if not anchor_scale > 0:
            raise ValueError(f'anchor_scale must be > 0, got {anchor_scale!r}')
        self.topk = topk
        self.anchor_scale = anchor_scale

    @torch.no_grad()
    def assign_batch(
        self,
        scores: Tensor,
        boxes: Tensor,
        priors: Tensor,
        gts: GroundTruth,
        level_sizes: Sequence[int],
    ) -> Matches:
        """Assign the ``n`` priors of each of ``B`` images.

        Args:
            scores: ``(B, n, num_classes)``; not used.
            boxes: ``(B, n, 4)``, predictions, ``xyxy`` in pixels.
            priors: ``(n, 4)``, centre and strides in pixels.
            gts: The boxes of all images.
            level_sizes: Priors of each level, in their order.

        Returns:
            The positives of the batch.
        """
        centres, strides = priors.split(2, dim=1)
        half = strides * self.anchor_scale / 2
        anchors = torch.cat([centres - half, centres + half], dim=1)
        overlaps = bbox_overlaps(gts.boxes, anchors)

        candidates = self._nearest(centres, level_sizes, gts.boxes)
        ious = overlaps.gather(1, candidates)
        mean = ious.mean(dim=1, keepdim=True)
        # `std` warns about batches without boxes.
        squares = (ious - mean).square().sum(dim=1, keepdim=True)
        threshold = mean + (squares / (ious.shape[1] - 1)).sqrt()
        positive = (ious > threshold) & inside(centres, gts.boxes).gather(
            1, candidates
        )

        rows, order = positive.nonzero().unbind(1)
        cells, matched = settle(
            rows, candidates[rows, order], overlaps, gts.images
        )
        quality = bbox_overlaps(
            boxes.flatten(0, 1)[cells], gts.boxes[matched], is_aligned=True
        )
        return Matches(cells, matched, quality)

    def _nearest(
        self, centres: Tensor, level_sizes: Sequence[int], gt_boxes: Tensor
    ) -> Tensor:
        """Indices of the candidates of each box.

        Args:
            centres: ``(n, 2)``.
            level_sizes: As of :meth:`assign_batch`.
            gt_boxes: ``(g, 4)``.

        Returns:
            ``(g, c)``, level by level.
        """
        middles = (gt_boxes[:, None, :2] + gt_boxes[:, None, 2:]) / 2
        distances = (centres - middles).square().sum(dim=-1)
        starts = [sum(level_sizes[:i]) for i in range(len(level_sizes))]
        return torch.cat(
            [
                start + top_indices(level, self.topk, largest=False)
                for start, level in zip(
                    starts,
                    distances.split(list(level_sizes), dim=1),
                    strict=True,
                )
            ],
            dim=1,
        )
