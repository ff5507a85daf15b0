"""SimOTA with PicoDet's cost: varifocal and GIoU."""

import torch
import torch.nn.functional as F
from mmdet.models.task_modules import AssignResult, BaseAssigner
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor

from anchorformer_mm.registry import TASK_UTILS

# Added to the cost of a pair whose prior is not both inside the box and
# near its centre: such a pair is taken only when nothing else is left.
_PENALTY = 1e8


def varifocal_cost(
    scores: Tensor,
    gt_labels: Tensor,
    ious: Tensor,
    alpha: float = 0.75,
    gamma: float = 2.0,
) -> Tensor:
    """Varifocal loss of every (prior, box) pair, summed over the classes.

    The target of a pair is its IoU at the box's class and zero elsewhere.
    Only that one class depends on the box, so the sum is a background term
    of the prior plus a correction: no ``(n, g, num_classes)`` tensor.

    Args:
        scores: Class probabilities, ``(n, num_classes)``.
        gt_labels: Class of each box, ``(g,)``.
        ious: Overlaps, ``(n, g)``.
        alpha: Weight of the background term.
        gamma: Exponent of the background term.

    Returns:
        The cost, ``(n, g)``.
    """
    background = (
        alpha
        * scores.pow(gamma)
        * F.binary_cross_entropy(
            scores, torch.zeros_like(scores), reduction='none'
        )
    )
    foreground = ious * F.binary_cross_entropy(
        scores[:, gt_labels], ious, reduction='none'
    )
    correction = torch.where(
        ious > 0, foreground - background[:, gt_labels], 0.0
    )
    return background.sum(dim=1, keepdim=True) + correction


@TASK_UTILS.register_module()
class PicoSimOTAAssigner(BaseAssigner):
    """Assigns priors to ground truth boxes as PicoDet (v1) does.

    The candidates are the priors inside any box, or within
    ``center_radius`` strides (strictly, on both axes) of any box's centre.
    A pair of candidate and box costs::

        vfl_weight * VFL + iou_weight * (1 - GIoU)
            + 1e8 * not (inside the box and near its centre)

    where VFL is :func:`varifocal_cost`. Each box takes its ``k`` cheapest
    candidates, with ``k`` the integer part, at least 1, of the sum of its
    ``candidate_topk`` largest IoUs. A prior taken by several boxes goes to
    the one that is cheapest for it among all boxes.

    The result is deterministic: of equally cheap candidates the one with
    the lower index is taken. fp16 and bf16 inputs are computed in fp32, also
    within autocast, and nothing is differentiated.

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

    def __init__(
        self,
        center_radius: float = 2.5,
        candidate_topk: int = 10,
        iou_weight: float = 6.0,
        vfl_weight: float = 1.0,
        alpha: float = 0.75,
        gamma: float = 2.0,
    ) -> None:
        for name, value, allowed, ok in (
            ('center_radius', center_radius, 'positive', center_radius > 0),
            (
                'candidate_topk',
                candidate_topk,
                'an integer of at least 1',
                isinstance(candidate_topk, int) and candidate_topk >= 1,
            ),
            ('iou_weight', iou_weight, 'at least 0', iou_weight >= 0),
            ('vfl_weight', vfl_weight, 'at least 0', vfl_weight >= 0),
            ('alpha', alpha, 'at least 0', alpha >= 0),
            ('gamma', gamma, 'at least 0', gamma >= 0),
        ):
            if not ok:
                raise ValueError(f'{name} must be {allowed}, got {value!r}')
        self.center_radius = center_radius
        self.candidate_topk = candidate_topk
        self.iou_weight = iou_weight
        self.vfl_weight = vfl_weight
        self.alpha = alpha
        self.gamma = gamma

    @torch.no_grad()
    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
        **kwargs,
    ) -> AssignResult:
        """Assign the priors of one image.

        Args:
            pred_instances: ``scores`` ``(n, num_classes)``, probabilities
                (after the sigmoid, not logits); ``bboxes`` ``(n, 4)``,
                decoded, ``xyxy`` in pixels; ``priors`` ``(n, 4)``, centre
                and strides ``(cx, cy, stride_w, stride_h)`` in pixels.
            gt_instances: ``bboxes`` ``(g, 4)``, ``xyxy`` in pixels, and
                ``labels`` ``(g,)``. ``g`` may be zero.
            gt_instances_ignore: Not used, as in mmdet's SimOTA: a region to
                be ignored trains as background.
            **kwargs: Not used.

        Returns:
            ``gt_inds`` ``(n,)``: 0 for background, else the 1-based index
            of the box. ``labels`` ``(n,)``: its class, or -1.
            ``max_overlaps`` ``(n,)``: the IoU with it, or 0.
        """
        scores, boxes, priors, gt_boxes = (
            x.to(torch.promote_types(x.dtype, torch.float32))
            for x in (
                pred_instances.scores,
                pred_instances.bboxes,
                pred_instances.priors,
                gt_instances.bboxes,
            )
        )
        gt_labels = gt_instances.labels
        gt_inds = gt_labels.new_zeros(len(priors), dtype=torch.long)
        labels = torch.full_like(gt_inds, -1)
        overlaps = boxes.new_zeros(len(priors))

        in_box, in_centre = self._locate(priors, gt_boxes)
        candidates = (in_box | in_centre).any(dim=1).nonzero().squeeze(1)
        if len(candidates):
            preferred = (in_box & in_centre)[candidates]
            with torch.autocast(boxes.device.type, enabled=False):
                ious, cost = self._cost(
                    scores[candidates],
                    boxes[candidates],
                    gt_boxes,
                    gt_labels,
                    preferred,
                )
                rows, columns = self._match(ious, cost)
            positives = candidates[rows]
            gt_inds[positives] = columns + 1
            labels[positives] = gt_labels[columns].long()
            overlaps[positives] = ious[rows, columns]
        return AssignResult(len(gt_boxes), gt_inds, overlaps, labels=labels)

    def _locate(
        self, priors: Tensor, gt_boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Which priors lie inside which boxes, and near which centres.

        Args:
            priors: ``(n, 4)``, centre and strides.
            gt_boxes: ``(g, 4)``, ``xyxy``.

        Returns:
            Two masks, ``(n, g)``: inside the box, near its centre.
        """
        points, strides = priors[:, None, :2], priors[:, None, 2:]
        top_left, bottom_right = gt_boxes[:, :2], gt_boxes[:, 2:]
        in_box = ((points > top_left) & (points < bottom_right)).all(dim=-1)
        offsets = (points - (top_left + bottom_right) / 2).abs()
        in_centre = (offsets < self.center_radius * strides).all(dim=-1)
        return in_box, in_centre

    def _cost(
        self,
        scores: Tensor,
        boxes: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        preferred: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """IoU and cost of ``m`` candidates and ``g`` boxes.

        Args:
            scores: ``(m, num_classes)``, probabilities.
            boxes: ``(m, 4)``, ``xyxy``.
            gt_boxes: ``(g, 4)``, ``xyxy``.
            gt_labels: ``(g,)``.
            preferred: ``(m, g)``, pairs that are free of the penalty.

        Returns:
            IoU ``(m, g)``, and cost ``(m, g)`` in float64: next to the
            penalty float32 would round the rest of the cost to eights.
        """
        ious = bbox_overlaps(boxes, gt_boxes)
        gious = bbox_overlaps(boxes, gt_boxes, mode='giou')
        vfl = varifocal_cost(scores, gt_labels, ious, self.alpha, self.gamma)
        cost = self.vfl_weight * vfl + self.iou_weight * (1 - gious)
        return ious, cost.double() + _PENALTY * ~preferred

    def _match(self, ious: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
        """Dynamic-k matching.

        Args:
            ious: ``(m, g)``.
            cost: ``(m, g)``.

        Returns:
            The matched pairs, as two index vectors of equal length: rows
            (each at most once) and columns.
        """
        top_ious = ious.topk(min(self.candidate_topk, len(ious)), dim=0)
        dynamic_k = top_ious.values.sum(dim=0).long().clamp(min=1)
        # A stable sort, since topk may break ties differently per device.
        # No k exceeds candidate_topk: an IoU is at most 1.
        cheapest = cost.argsort(dim=0, stable=True)[: self.candidate_topk]
        rank = torch.arange(len(cheapest), device=cost.device)[:, None]
        taken = torch.zeros_like(cost, dtype=torch.bool)
        taken.scatter_(0, cheapest, rank < dynamic_k)

        rows = taken.any(dim=1).nonzero().squeeze(1)
        contested = taken[rows].sum(dim=1) > 1
        columns = torch.where(
            contested,
            cost[rows].argmin(dim=1),
            taken[rows].long().argmax(dim=1),
        )
        return rows, columns
