"""Assigners of PicoDet: SimOTA for v1, ATSS and task alignment for v2.

All take the images of a batch at once, by ``assign_batch``. The boxes of all
images lie in one list, each with the number of its image, and a matrix has
one row per box and one column per prior of its own image: nothing is padded,
and no loop runs over images or boxes. A GPU is waited for once, for the number
of positives.
"""

from abc import abstractmethod
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import torch
from mmdet.models.task_modules import AssignResult, BaseAssigner
from mmdet.structures.bbox import bbox_overlaps
from mmdet.utils import InstanceList
from mmengine.structures import InstanceData
from torch import Tensor

from anchorformer_mm.models.argument_checks import (
    check_above_zero,
    check_not_negative,
    check_positive,
)
from anchorformer_mm.registry import TASK_UTILS


class GroundTruth(NamedTuple):
    """The ``g`` boxes of a batch."""

    boxes: Tensor  # (g, 4), xyxy in pixels, fp32
    labels: Tensor  # (g,), their classes
    images: Tensor  # (g,), the image of each

    @classmethod
    def of_batch(cls, batch_gt_instances: InstanceList) -> 'GroundTruth':
        """Put the boxes of one ``InstanceData`` per image into one list."""
        labels = torch.cat([gt.labels for gt in batch_gt_instances])
        images = [
            torch.full_like(gt.labels, i, dtype=torch.long)
            for i, gt in enumerate(batch_gt_instances)
        ]
        boxes = torch.cat([gt.bboxes for gt in batch_gt_instances]).float()
        return cls(boxes, labels, torch.cat(images))


class Matches(NamedTuple):
    """The ``p`` positives of a batch."""

    cells: Tensor  # (p,), rising: image times n plus prior
    boxes: Tensor  # (p,), the box of each, an index into GroundTruth
    scores: Tensor  # (p,), the target score of its class


class PicoAssigner(BaseAssigner):
    """Base of PicoDet's assigners: one call assigns a whole batch."""

    @abstractmethod
    def assign_batch(
        self,
        scores: Tensor,
        boxes: Tensor,
        priors: Tensor,
        gts: GroundTruth,
        level_sizes: Sequence[int],
    ) -> Matches:
        """Assign the ``n`` priors of each of ``B`` images.

        Nothing is differentiated. Of equally good priors the one with the
        lower index is taken.

        Args:
            scores: ``(B, n, num_classes)``, probabilities.
            boxes: ``(B, n, 4)``, predictions, ``xyxy`` in pixels.
            priors: ``(n, 4)``, centre and strides
                ``(cx, cy, stride_w, stride_h)`` in pixels.
            gts: Boxes of all images; some or all may have none.
            level_sizes: Number of priors of each level, in their order.

        Returns:
            The positives of the batch.
        """

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
        **kwargs,
    ) -> AssignResult:
        """Assign the priors of one image, as mmdet's heads ask for it.

        Args:
            pred_instances: ``scores`` ``(n, num_classes)``, ``bboxes`` and
                ``priors`` ``(n, 4)``, as for :meth:`assign_batch`.
            gt_instances: ``bboxes`` ``(g, 4)`` and ``labels`` ``(g,)``.
            gt_instances_ignore: Not used, as in mmdet's SimOTA: a region to
                be ignored trains as background. Nor are others.

        Returns:
            mmdet's; ``max_overlaps`` are the target scores, or 0.
        """
        priors, gt_labels = pred_instances.priors, gt_instances.labels
        levels = priors[:, 2].unique_consecutive(return_counts=True)[1]
        cells, boxes, scores = self.assign_batch(
            pred_instances.scores[None],
            pred_instances.bboxes[None],
            priors,
            GroundTruth.of_batch([gt_instances]),
            levels.tolist(),
        )
        gt_inds = cells.new_zeros(len(priors))
        gt_inds[cells] = boxes + 1
        labels = torch.full_like(gt_inds, -1)
        labels[cells] = gt_labels[boxes].long()
        overlaps = scores.new_zeros(len(priors))
        overlaps[cells] = scores
        return AssignResult(len(gt_labels), gt_inds, overlaps, labels=labels)


def assign_one_by_one(
    assigner: BaseAssigner,
    scores: Tensor,
    boxes: Tensor,
    priors: Tensor,
    batch_gt_instances: InstanceList,
    batch_gt_instances_ignore: Sequence[InstanceData | None],
) -> tuple[Tensor, Tensor]:
    """Match a batch with an assigner of mmdet, which takes single images.

    The tensors are those of :meth:`PicoAssigner.assign_batch`, and the
    results the ``cells`` and ``boxes`` of :class:`Matches`.
    """
    cells, matched, first = [], [], 0
    for i, gt in enumerate(batch_gt_instances):
        seen = InstanceData(scores=scores[i], bboxes=boxes[i], priors=priors)
        ignored = batch_gt_instances_ignore[i]
        gt_inds = assigner.assign(seen, gt, ignored).gt_inds
        columns = (gt_inds > 0).nonzero().squeeze(1)
        cells.append(i * len(priors) + columns)
        matched.append(first + gt_inds[columns] - 1)
        first += len(gt)
    return torch.cat(cells), torch.cat(matched)


def top_indices(values: Tensor, k: int, largest: bool = True) -> Tensor:
    """Find the top ``k`` of each row, of equals those of lower index.

    Values are fp32 ``(g, n)``, at least 0; all are taken if there are fewer.
    ``topk`` alone breaks ties differently on every device, and a box in the
    middle of four cells is as near to each of them.
    """
    n = values.shape[1]
    index = torch.arange(n, device=values.device)
    # Not below zero, floats and their bits have the same order.
    bits = values.contiguous().view(torch.int32).long()
    keys = bits << 32 | (n - index if largest else index)
    return keys.topk(min(k, n), dim=1, largest=largest).indices


def inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Tell ``(g, n)`` which points ``(n, 2)`` are within boxes ``(g, 4)``.

    A point on the border is outside.
    """
    top_left, bottom_right = boxes[:, None, :2], boxes[:, None, 2:]
    return ((points > top_left) & (points < bottom_right)).all(dim=-1)


def settle(
    claims: Tensor, affinity: Tensor, images: Tensor, batch: int
) -> tuple[Tensor, Tensor]:
    """Give every prior that boxes claim to one of them.

    Claims ``(g, n)`` are bool. A prior of a batch of images that several
    boxes claim goes to the box of its image with the largest affinity
    ``(g, n)``, the first of equals. As in the original this need not be one
    that claims it. Returns ``cells`` and ``boxes`` of :class:`Matches`.
    """
    g, n = claims.shape
    index = images[:, None].expand(g, n)
    counts = torch.zeros_like(claims[:1], dtype=torch.int).repeat(batch, 1)
    contested = counts.index_add_(0, images, claims.int())[images] > 1
    best = affinity.new_full((batch, n), -inf)
    best = best.scatter_reduce_(0, index, affinity, 'amax')[images]
    wins = (affinity == best).where(contested, claims)
    rows = torch.arange(g, device=images.device)[:, None].where(wins, g)
    owners = rows.new_full((batch, n), g)
    owners = owners.scatter_reduce_(0, index, rows, 'amin').flatten()
    cells = (owners < g).nonzero().squeeze(1)
    return cells, owners[cells]


@TASK_UTILS.register_module()
class PicoSimOTAAssigner(PicoAssigner):
    """SimOTA as PicoDet v1 has it, with a varifocal and a GIoU cost.

    The candidates are the priors inside any box, or within
    ``center_radius`` strides (strictly, on both axes) of any box's centre.
    A pair of candidate and box costs::

        vfl_weight * VFL + iou_weight * (1 - GIoU)
            + 1e8 * not (inside the box and near its centre)

    where VFL is :func:`varifocal_cost`. Each box takes its ``k`` cheapest
    candidates, with ``k`` the integer part, at least 1, of the sum of its
    ``candidate_topk`` largest IoUs. A prior taken by several boxes goes to
    the one that is cheapest for it among all boxes of the image. The target
    score of a positive is its IoU.

    fp16 and bf16 inputs are computed in fp32, also within autocast.

    Args:
        center_radius: Half the side of the centre box, in strides.
        candidate_topk: Number of IoUs that are summed to give ``k``.
        iou_weight: Weight of ``1 - GIoU`` in the cost.
        vfl_weight: Weight of the varifocal term in the cost.
        alpha: Background weight of the varifocal term.
        gamma: Background exponent of the varifocal term.

    Raises:
        ValueError: An argument is out of its range.
    """

    # Such a pair is taken only when nothing else is left.
    penalty = 1e8

    def __init__(
        self,
        center_radius: float = 2.5,
        candidate_topk: int = 10,
        iou_weight: float = 6.0,
        vfl_weight: float = 1.0,
        alpha: float = 0.75,
        gamma: float = 2.0,
    ) -> None:
        check_above_zero(center_radius=center_radius)
        check_positive(candidate_topk=candidate_topk)
        check_not_negative(iou_weight=iou_weight, vfl_weight=vfl_weight)
        check_not_negative(alpha=alpha, gamma=gamma)
        self.center_radius = center_radius
        self.candidate_topk = candidate_topk
        self.iou_weight = iou_weight
        self.vfl_weight = vfl_weight
        self.alpha = alpha
        self.gamma = gamma

    @torch.no_grad()
    def assign_batch(
        self,
        scores: Tensor,
        boxes: Tensor,
        priors: Tensor,
        gts: GroundTruth,
        level_sizes: Sequence[int] = (),
    ) -> Matches:
        """Assign all images; the levels compete, so sizes are not used."""
        scores, boxes, priors, gt_boxes = (
            x.to(torch.promote_types(x.dtype, torch.float32))
            for x in (scores, boxes, priors, gts.boxes)
        )
        gts = gts._replace(boxes=gt_boxes)
        if not len(priors) or not len(gt_boxes):
            none = torch.zeros_like(gts.images[:0])
            return Matches(none, none, boxes.new_zeros(0))

        in_box = inside(priors[:, :2], gt_boxes)
        centres = (gt_boxes[:, None, :2] + gt_boxes[:, None, 2:]) / 2
        offsets = (priors[:, :2] - centres).abs()
        near = (offsets < self.center_radius * priors[:, 2:]).all(dim=-1)
        counts = torch.zeros_like(boxes[..., 0], dtype=torch.int32)
        counts.index_add_(0, gts.images, (in_box | near).int())
        candidates = counts > 0
        eligible = candidates[gts.images]
        with torch.autocast(boxes.device.type, enabled=False):
            pairs = gt_boxes[:, None], boxes[gts.images]
            ious = bbox_overlaps(*pairs).squeeze(1)
            gious = bbox_overlaps(*pairs, mode='giou').squeeze(1)
            vfl = varifocal_cost(scores, gts, ious, self.alpha, self.gamma)
            cost = self.vfl_weight * vfl + self.iou_weight * (1 - gious)
            # float32 would round the rest of the cost to eights.
            cost = cost.double() + self.penalty * ~(in_box & near)
            cost = cost.where(eligible, inf)
            ious = ious.where(eligible, 0.0)

        most = min(self.candidate_topk, ious.shape[1])
        # In float64, lest rounding decide what the integer part is.
        sums = ious.topk(most, dim=1).values.sum(dim=1, dtype=torch.float64)
        k = sums.long().clamp(1, most)[:, None]
        # The k-th least cost. Of the pairs with just this cost, of which topk
        # takes others on every device, the first ones fill what is left.
        cheapest = cost.topk(most, dim=1, largest=False).values
        limit = cheapest.gather(1, k - 1)
        below, tied = cost < limit, cost == limit
        left = k - below.sum(dim=1, keepdim=True)
        taken = below | tied & (tied.cumsum(dim=1) <= left)
        taken &= cost.isfinite()
        cells, matched = settle(taken, -cost, gts.images, len(boxes))
        return Matches(cells, matched, ious[matched, cells % len(priors)])


def varifocal_cost(
    scores: Tensor,
    gts: GroundTruth,
    ious: Tensor,
    alpha: float = 0.75,
    gamma: float = 2.0,
) -> Tensor:
    """Varifocal loss ``(g, n)`` of pairs, summed over the classes.

    The target of a pair is its IoU ``(g, n)`` at the box's class and zero
    elsewhere. Only that one class depends on the box, so the sum is a
    background term of the prior plus a correction: no tensor of
    ``(g, n, num_classes)``. Probabilities are ``(B, n, num_classes)``.
    """

    def log1p(x: Tensor) -> Tensor:
        # Bounded as in torch's binary cross entropy, which is slower, and
        # ends a process on a GPU for what is not a number.
        return x.log1p().clamp(min=-100)

    def background(p: Tensor) -> Tensor:
        return -alpha * p.pow(gamma) * log1p(-p)

    sums = background(scores).sum(dim=2)[gts.images]
    p = scores[gts.images, :, gts.labels]
    foreground = -ious * (ious * log1p(p - 1) + (1 - ious) * log1p(-p))
    return sums + (foreground - background(p)).where(ious > 0, 0.0)


@TASK_UTILS.register_module()
class PicoATSSAssigner(PicoAssigner):
    """Adaptive training sample selection, for the first epochs of v2.

    `Bridging the Gap Between Anchor-based and Anchor-free Detection via
    Adaptive Training Sample Selection <https://arxiv.org/abs/1912.02424>`_.
    Every prior is a square anchor of ``anchor_scale`` strides. The candidates
    of a box are, of every level, the ``topk`` anchors whose centres are
    nearest to its own. A candidate is positive where its IoU with the box
    exceeds the mean plus the standard deviation of the candidates' and its
    centre lies inside the box. The target score of a positive is the IoU of
    its predicted box.

    mmdet's ``ATSSAssigner`` differs: there the IoU may also equal the
    threshold, the centre must be 0.01 pixels inside, and a prior claimed by
    several boxes goes to the claimant that it overlaps most; here, as in the
    original, to any box of the image.

    Args:
        topk: Candidates of a box on each level; a level with fewer anchors
            gives all it has.
        anchor_scale: Side of an anchor in strides.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(self, topk: int = 9, anchor_scale: float = 5.0) -> None:
        check_positive(topk=topk)
        check_above_zero(anchor_scale=anchor_scale)
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
        """Assign all images, without regard to the predicted scores."""
        centres, strides = priors.split(2, dim=1)
        half = strides * self.anchor_scale / 2
        anchors = torch.cat([centres - half, centres + half], dim=1)
        overlaps = bbox_overlaps(gts.boxes, anchors)

        middles = (gts.boxes[:, None, :2] + gts.boxes[:, None, 2:]) / 2
        distances = (centres - middles).square().sum(dim=-1)
        nearest, start = [], 0
        for level in distances.split(list(level_sizes), dim=1):
            found = top_indices(level, self.topk, largest=False)
            nearest.append(start + found)
            start += level.shape[1]
        candidates = torch.cat(nearest, dim=1)
        ious = overlaps.gather(1, candidates)
        mean = ious.mean(dim=1, keepdim=True)
        # `std` warns about batches without boxes.
        squares = (ious - mean).square().sum(dim=1, keepdim=True)
        threshold = mean + (squares / (ious.shape[1] - 1)).sqrt()
        within = inside(centres, gts.boxes).gather(1, candidates)
        positive = (ious > threshold) & within
        claims = torch.zeros_like(overlaps, dtype=torch.bool)
        claims.scatter_(1, candidates, positive)
        cells, matched = settle(claims, overlaps, gts.images, len(boxes))
        quality = bbox_overlaps(
            boxes.flatten(0, 1)[cells], gts.boxes[matched], is_aligned=True
        )
        return Matches(cells, matched, quality)


@TASK_UTILS.register_module()
class PicoTaskAlignedAssigner(PicoAssigner):
    """Task-aligned assignment, for the later epochs of v2.

    `TOOD: Task-aligned One-stage Object Detection
    <https://arxiv.org/abs/2108.07755>`_. The alignment of a prior and a box
    is ``score ** alpha * IoU ** beta``, with the predicted score of the
    box's class and the IoU of the predicted box. Of the priors inside it a
    box takes the ``topk`` with the largest alignment. The target score of a
    positive is its alignment, scaled such that the best of a box has the
    largest IoU of that box's positives.

    mmdet's ``TaskAlignedAssigner`` takes the ``topk`` of all priors first
    and then drops those outside, which can leave a box without any; and a
    prior claimed by several boxes goes to the claimant that it overlaps
    most; here, as in the original, to any box of the image.

    Args:
        topk: Priors that a box takes; all inside it if there are fewer.
        alpha: Exponent of the score.
        beta: Exponent of the IoU.

    Raises:
        ValueError: An argument is out of its range.
    """

    # Keeps the ratio of two alignments finite.
    eps = 1e-9

    def __init__(
        self, topk: int = 13, alpha: float = 1.0, beta: float = 6.0
    ) -> None:
        check_positive(topk=topk)
        check_not_negative(alpha=alpha, beta=beta)
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
        level_sizes: Sequence[int] = (),
    ) -> Matches:
        """Assign all images; the levels compete, so sizes are not used."""
        overlaps = bbox_overlaps(gts.boxes[:, None], boxes[gts.images])
        overlaps = overlaps.squeeze(1)
        class_scores = scores[gts.images, :, gts.labels]
        alignment = class_scores**self.alpha * overlaps**self.beta
        eligible = alignment * inside(priors[:, :2], gts.boxes)

        candidates = top_indices(eligible, self.topk)
        claims = torch.zeros_like(overlaps, dtype=torch.bool)
        claims.scatter_(1, candidates, eligible.gather(1, candidates) > 0)
        cells, matched = settle(claims, overlaps, gts.images, len(boxes))

        def largest_of_box(values: Tensor) -> Tensor:
            largest = values.new_zeros(len(gts.boxes))
            return largest.scatter_reduce_(0, matched, values, 'amax')[matched]

        columns = cells % len(priors)
        alignment = alignment[matched, columns]
        best_iou = largest_of_box(overlaps[matched, columns])
        ratio = alignment / (largest_of_box(alignment) + self.eps)
        return Matches(cells, matched, ratio * best_iou)
