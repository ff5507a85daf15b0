"""SimOTA with PicoDet's cost: varifocal and GIoU."""

import torch
from mmdet.models.task_modules import AssignResult, BaseAssigner
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor

from anchorformer_mm.models.task_modules.batch_matching import (
    GroundTruth,
    Matches,
    inside,
    settle,
)
from anchorformer_mm.registry import TASK_UTILS

# Added to the cost of a pair whose prior is not both inside the box and
# near its centre: such a pair is taken only when nothing else is left.
_PENALTY = 1e8


def varifocal_cost(
    scores: Tensor,
    candidates: Tensor,
    gts: GroundTruth,
    ious: Tensor,
    alpha: float = 0.75,
    gamma: float = 2.0,
) -> Tensor:
    """Varifocal loss of every (box, prior) pair, summed over the classes.

    The target of a pair is its IoU at the box's class and zero elsewhere.
    Only that one class depends on the box, so the sum is a background term
    of the prior plus a correction: no ``(g, n, num_classes)`` tensor.

    Args:
        scores: Class probabilities, ``(B, n, num_classes)``.
        candidates: ``(B, n)``, the priors to compute.
        gts: The ``g`` boxes of the batch.
        ious: Overlaps of these with the predictions, ``(g, n)``.
        alpha: Weight of the background term.
        gamma: Exponent of the background term.

    Returns:
        The cost, ``(g, n)``, without meaning where the prior is no candidate.
    """

    def background(p: Tensor) -> Tensor:
        return -alpha * p.pow(gamma) * _log1p(-p)

    cells = candidates.flatten().nonzero().squeeze(1)
    sums = scores.new_zeros(candidates.numel())
    sums[cells] = background(scores.flatten(0, 1)[cells]).sum(dim=1)
    sums = sums.view_as(candidates)[gts.images]

    p = scores[gts.images, :, gts.labels]
    foreground = -ious * (ious * _log1p(p - 1) + (1 - ious) * _log1p(-p))
    return sums + (foreground - background(p)).where(ious > 0, 0.0)


def _log1p(x: Tensor) -> Tensor:
    """``log(1 + x)``, bounded as in torch's binary cross entropy.

    That function itself takes several times as long on a CPU, and one
    probability that is not a number ends a process on a GPU.
    """
    return x.log1p().clamp(min=-100)


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
    the one that is cheapest for it among all boxes of the image.

    The result is deterministic: of equally cheap candidates the one with
    the lower index is taken. fp16 and bf16 inputs are computed in fp32, also
    within autocast, and nothing is differentiated.

    :meth:`assign` is mmdet's protocol, for one image;
    :meth:`assign_batch` takes all images of a batch at once.

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
        gt_labels = gt_instances.labels
        cells, columns, ious = self.assign_batch(
            pred_instances.scores[None],
            pred_instances.bboxes[None],
            pred_instances.priors,
            GroundTruth(
                gt_instances.bboxes,
                gt_labels,
                torch.zeros_like(gt_labels, dtype=torch.long),
            ),
        )
        gt_inds = cells.new_zeros(len(pred_instances.priors))
        gt_inds[cells] = columns + 1
        labels = torch.full_like(gt_inds, -1)
        labels[cells] = gt_labels[columns].long()
        overlaps = ious.new_zeros(len(gt_inds))
        overlaps[cells] = ious
        return AssignResult(len(gt_labels), gt_inds, overlaps, labels=labels)

    @torch.no_grad()
    def assign_batch(
        self,
        scores: Tensor,
        boxes: Tensor,
        priors: Tensor,
        gts: GroundTruth,
    ) -> Matches:
        """Assign the ``n`` priors of each of ``B`` images.

        Args:
            scores: ``(B, n, num_classes)``, probabilities.
            boxes: ``(B, n, 4)``, decoded, ``xyxy`` in pixels.
            priors: ``(n, 4)``, centre and strides, as in :meth:`assign`.
            gts: The boxes of all images; some or all may have none.

        Returns:
            The positives of the batch, their IoUs as ``scores``.
        """
        scores, boxes, priors, gt_boxes = (
            x.to(torch.promote_types(x.dtype, torch.float32))
            for x in (scores, boxes, priors, gts.boxes)
        )
        gts = gts._replace(boxes=gt_boxes)
        if not len(priors) or not len(gt_boxes):
            none = torch.zeros_like(gts.images[:0])
            return Matches(none, none, boxes.new_zeros(0))

        in_box = inside(priors[:, :2], gt_boxes)
        in_centre = self._near_centre(priors, gt_boxes)
        counts = torch.zeros_like(boxes[..., 0], dtype=torch.int32)
        counts.index_add_(0, gts.images, (in_box | in_centre).int())
        with torch.autocast(boxes.device.type, enabled=False):
            ious, cost = self._cost(
                scores, boxes, gts, counts > 0, in_box & in_centre
            )
            rows, columns = self._cheapest(ious, cost)
            cells, matched = settle(rows, columns, -cost, gts.images)
        return Matches(cells, matched, ious[matched, cells % len(priors)])

    def _near_centre(self, priors: Tensor, gt_boxes: Tensor) -> Tensor:
        """Which priors lie near the centres of which boxes.

        Args:
            priors: ``(n, 4)``, centre and strides.
            gt_boxes: ``(g, 4)``, ``xyxy``.

        Returns:
            ``(g, n)``.
        """
        centres = (gt_boxes[:, None, :2] + gt_boxes[:, None, 2:]) / 2
        offsets = (priors[:, :2] - centres).abs()
        return (offsets < self.center_radius * priors[:, 2:]).all(dim=-1)

    def _cost(
        self,
        scores: Tensor,
        boxes: Tensor,
        gts: GroundTruth,
        candidates: Tensor,
        preferred: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """IoU and cost of ``g`` boxes and the ``n`` priors of their images.

        Args:
            scores: ``(B, n, num_classes)``, probabilities.
            boxes: ``(B, n, 4)``, ``xyxy``.
            gts: The ``g`` boxes of the batch.
            candidates: ``(B, n)``, the priors that boxes may take.
            preferred: ``(g, n)``, pairs that are free of the penalty.

        Returns:
            IoU ``(g, n)``, and cost ``(g, n)`` in float64: next to the
            penalty float32 would round the rest of the cost to eights. For
            a prior that is no candidate they are zero and infinite.
        """
        pairs = gts.boxes[:, None], boxes[gts.images]
        ious = bbox_overlaps(*pairs).squeeze(1)
        gious = bbox_overlaps(*pairs, mode='giou').squeeze(1)
        vfl = varifocal_cost(
            scores, candidates, gts, ious, self.alpha, self.gamma
        )
        cost = self.vfl_weight * vfl + self.iou_weight * (1 - gious)
        cost = cost.double() + _PENALTY * ~preferred
        eligible = candidates[gts.images]
        return ious.where(eligible, 0.0), cost.where(eligible, torch.inf)

    def _cheapest(self, ious: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
        """The dynamic ``k`` cheapest priors of each box.

        Args:
            ious: ``(g, n)``.
            cost: ``(g, n)``, infinite for what cannot be taken.

        Returns:
            Pairs of a box and a prior, as two index vectors.
        """
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
        return taken.nonzero().unbind(dim=1)
