"""Targets and losses of PicoDet v2."""

import torch
from mmdet.utils import InstanceList, OptInstanceList, reduce_mean
from mmengine.logging import MessageHub
from torch import Tensor

from anchorformer_mm.models.dense_heads.base_pico_head import flatten_levels
from anchorformer_mm.models.task_modules.batch_matching import GroundTruth


class PicoLossV2Mixin:
    """What ``PicoHeadV2`` does in training.

    It uses the ``initial_epoch``, ``initial_assigner``, ``assigner``,
    ``bbox_coder``, ``prior_generator``, ``reg_max``, ``loss_cls``,
    ``loss_bbox``, ``loss_dfl``, ``_distances`` and ``_decode`` of the head.
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

        The assigner gives every positive the score that its class shall
        have; it is the class target, and the weight of the box and the
        distribution losses. All three are divided by the sum of these
        scores, which is averaged over the GPUs and at least 1; the original
        knows the floor with several GPUs alone.

        Args:
            cls_scores: As returned by :meth:`forward`.
            bbox_preds: As returned by :meth:`forward`.
            batch_gt_instances: One per image: ``bboxes`` ``(g, 4)``,
                ``xyxy`` in pixels, and ``labels`` ``(g,)``.
            batch_img_metas: Not used.
            batch_gt_instances_ignore: Not used: a region to be ignored
                trains as background.

        Returns:
            ``loss_cls``, ``loss_bbox`` and ``loss_dfl``, scalars. Without a
            positive the last two are zero, and still have a gradient.
        """
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            sizes = [x.shape[-2:] for x in cls_scores]
            priors = torch.cat(
                self.prior_generator.grid_priors(
                    sizes,
                    device=cls_scores[0].device,
                    with_stride=True,
                )
            )
            scores, distributions = map(
                flatten_levels, (cls_scores, bbox_preds)
            )
            gts = GroundTruth.of_batch(batch_gt_instances)
            matches = self.current_assigner().assign_batch(
                scores.detach(),
                self._decode(distributions.detach(), priors),
                priors,
                gts,
                [h * w for h, w in sizes],
            )
            quality = torch.zeros_like(scores).flatten(0, 1)
            quality[matches.cells, gts.labels[matches.boxes]] = matches.scores

            sides = distributions.flatten(0, 1)[matches.cells]
            centres, strides = priors[matches.cells % len(priors)].split(2, 1)
            points = centres / strides
            targets = gts.boxes[matches.boxes] / strides.repeat(1, 2)
            factor = reduce_mean(matches.scores.sum()).clamp(min=1)
            return dict(
                loss_cls=self.loss_cls(
                    scores.flatten(0, 1), quality, avg_factor=factor
                ),
                loss_bbox=self.loss_bbox(
                    self.bbox_coder.decode(points, self._distances(sides)),
                    targets,
                    weight=matches.scores,
                    avg_factor=factor,
                ),
                # The mean over the four sides of a box.
                loss_dfl=self.loss_dfl(
                    sides.reshape(-1, self.reg_max + 1),
                    self.bbox_coder.encode(
                        points, targets, self.reg_max
                    ).flatten(),
                    weight=matches.scores.repeat_interleave(4),
                    avg_factor=4 * factor,
                ),
            )

    def current_assigner(self):
        """The assigner of this epoch: which one, mmengine's runner says.

        The runner tells the epoch to mmengine's ``MessageHub``, also when it
        resumes. Without a runner it is epoch 0.
        """
        epoch = MessageHub.get_current_instance().get_info('epoch', 0)
        if epoch < self.initial_epoch:
            return self.initial_assigner
        return self.assigner
