"""Targets and losses of PicoDet (v1)."""

import torch
from mmdet.structures.bbox import bbox_overlaps
from mmdet.utils import InstanceList, OptInstanceList, reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from anchorformer_mm.models.dense_heads.base_pico_head import flatten_levels
from anchorformer_mm.models.task_modules.batch_matching import GroundTruth


class PicoLossMixin:
    """What ``PicoHead`` does in training.

    It uses the ``assigner``, ``bbox_coder``, ``prior_generator``,
    ``reg_max``, ``loss_cls``, ``loss_bbox``, ``loss_dfl``, ``_distances``
    and ``_decode`` of the head.
    """

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: OptInstanceList = None,
    ) -> dict[str, Tensor]:
        """The three losses, in fp32 also within autocast.

        The class target of a positive is the IoU of its predicted box with
        its ground truth. The varifocal loss is divided by the number of
        positives, where an image with boxes counts as at least one. The box
        and the distribution losses of a positive are weighted with its
        largest class probability and divided by the sum of these weights.
        Both divisors are averaged over the GPUs, as everywhere in mmdet, and
        at least 1; the original divides by the positives of each GPU alone.

        Args:
            cls_scores: As returned by :meth:`forward`.
            bbox_preds: As returned by :meth:`forward`.
            batch_gt_instances: One per image: ``bboxes`` ``(g, 4)``,
                ``xyxy`` in pixels, and ``labels`` ``(g,)``.
            batch_img_metas: Not used.
            batch_gt_instances_ignore: Given to the assigner, and
                ``PicoSimOTAAssigner`` makes no use of it.

        Returns:
            ``loss_cls``, ``loss_bbox`` and ``loss_dfl``, scalars. Without a
            positive the last two are zero, and still have a gradient.
        """
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            priors = self.prior_generator.grid_priors(
                [x.shape[-2:] for x in cls_scores],
                device=cls_scores[0].device,
                with_stride=True,
            )
            priors = torch.cat(priors)
            logits, distributions = map(
                flatten_levels, (cls_scores, bbox_preds)
            )
            gts = GroundTruth.of_batch(batch_gt_instances)
            positives, matched = self._assign(
                logits.detach(),
                distributions.detach(),
                priors,
                gts,
                batch_gt_instances,
                batch_gt_instances_ignore or [None] * len(logits),
            )
            counts = torch.bincount(
                positives // len(priors), minlength=len(logits)
            )
            has_boxes = counts.new_tensor(
                [len(gt) > 0 for gt in batch_gt_instances]
            )
            num_pos = (counts.clamp(min=1) * has_boxes).sum()
            logits = logits.flatten(0, 1)
            sides = distributions.flatten(0, 1)[positives]
            centres, strides = priors[positives % len(priors)].split(2, dim=1)
            points = centres / strides
            targets = gts.boxes[matched] / strides.repeat(1, 2)
            boxes = self.bbox_coder.decode(points, self._distances(sides))

            quality = torch.zeros_like(logits)
            quality[positives, gts.labels[matched]] = bbox_overlaps(
                boxes.detach(), targets, is_aligned=True
            )
            weights = logits.detach()[positives].sigmoid().amax(dim=1)
            cls_factor = reduce_mean(num_pos.float())
            bbox_factor = reduce_mean(weights.sum()).clamp(min=1)
            return dict(
                loss_cls=self.loss_cls(
                    logits, quality, avg_factor=cls_factor.clamp(min=1)
                ),
                loss_bbox=self.loss_bbox(
                    boxes, targets, weight=weights, avg_factor=bbox_factor
                ),
                # The mean over the four sides of a box.
                loss_dfl=self.loss_dfl(
                    sides.reshape(-1, self.reg_max + 1),
                    self.bbox_coder.encode(
                        points, targets, self.reg_max
                    ).flatten(),
                    weight=weights.repeat_interleave(4),
                    avg_factor=4 * bbox_factor,
                ),
            )

    def _assign(
        self,
        logits: Tensor,
        distributions: Tensor,
        priors: Tensor,
        gts: GroundTruth,
        batch_gt_instances: InstanceList,
        batch_gt_instances_ignore: list[InstanceData | None],
    ) -> tuple[Tensor, Tensor]:
        """Assign the ``n`` priors of each of ``B`` images.

        An assigner without ``assign_batch``, such as mmdet's, is given the
        images one by one.

        Args:
            logits: ``(B, n, num_classes)``.
            distributions: ``(B, n, 4 * (reg_max + 1))``.
            priors: ``(n, 4)``.
            gts: The boxes of all images.
            batch_gt_instances: As of :meth:`loss_by_feat`.
            batch_gt_instances_ignore: As of :meth:`loss_by_feat`.

        Returns:
            Of the ``p`` positives of the batch the index into ``B * n``
            ``(p,)``, and the index of the box into ``gts`` ``(p,)``.
        """
        scores = logits.sigmoid()
        boxes = self._decode(distributions, priors)
        if hasattr(self.assigner, 'assign_batch'):
            matches = self.assigner.assign_batch(scores, boxes, priors, gts)
            return matches.cells, matches.boxes

        gt_inds = torch.stack(
            [
                self.assigner.assign(
                    InstanceData(scores=s, bboxes=b, priors=priors), gt, ignore
                ).gt_inds
                for s, b, gt, ignore in zip(
                    scores,
                    boxes,
                    batch_gt_instances,
                    batch_gt_instances_ignore,
                    strict=True,
                )
            ]
        )
        images = torch.arange(len(gt_inds), device=gt_inds.device)
        first = torch.searchsorted(gts.images, images)[:, None]
        positives = (gt_inds > 0).flatten().nonzero().squeeze(1)
        return positives, (first + gt_inds - 1).flatten()[positives]
