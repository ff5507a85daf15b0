"""Heads of PicoDet v1 and v2, each with its loss."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from mmcv.cnn import (
    ConvModule,
    DepthwiseSeparableConvModule,
    build_activation_layer,
    build_norm_layer,
)
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.dense_heads.gfl_head import Integral
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.models.task_modules import (
    DistancePointBBoxCoder,
    MlvlPointGenerator,
)
from mmdet.structures.bbox import bbox_overlaps
from mmdet.utils import (
    InstanceList,
    OptConfigType,
    OptInstanceList,
    OptMultiConfig,
    reduce_mean,
)
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from anchorformer_mm.models.argument_checks import (
    check_not_negative,
    check_odd,
    check_one_of,
    check_positive,
    is_number,
    rising,
)
from anchorformer_mm.models.task_modules.pico_assigners import (
    GroundTruth,
    PicoAssigner,
    PicoATSSAssigner,
    PicoSimOTAAssigner,
    PicoTaskAlignedAssigner,
    assign_one_by_one,
)
from anchorformer_mm.registry import MODELS, TASK_UTILS


class BasePicoHead(BaseDenseHead):
    """Towers, predictors, priors and decoding of PicoDet's heads.

    Every level has its own tower of ``stacked_convs`` depthwise separable
    convolutions, shared by classification and regression, and two 1x1
    convolutions, for the classes and, for each of the four sides, for a
    distribution over the distances ``0..reg_max`` in strides. What lies
    between the two, and the loss, are the subclass's.

    The distance biases start at zero, not at the class biases' value as in
    the original's common convolution: softmax does not see a shift.

    Args:
        num_classes: Number of classes, without the background.
        in_channels: Channels of every input level.
        feat_channels: Channels of the towers.
        stacked_convs: Blocks per tower.
        strides: Stride of every level in pixels, rising.
        kernel_size: Kernel of the (depthwise) convolutions of the towers.
        reg_max: Largest distance in strides; there are ``reg_max + 1`` bins.
        use_depthwise: Depthwise separable convolutions; plain ones if False.
        norm_cfg: Normalisation of the towers. ``None`` is BN.
        act_cfg: Activation of the towers. ``None`` is the hard swish.
        prior_prob: Initial probability of every class.
        loss_cls: ``None`` is ``default_loss_cls``.
        loss_bbox: ``None`` is ``default_loss_bbox``. Boxes are in strides.
        loss_dfl: ``None`` is ``default_loss_dfl``.
        train_cfg: ``assigner``, and what the subclass adds. ``None`` is
            ``default_train_cfg``.
        test_cfg: ``nms_pre`` (pairs of cell and class kept per level),
            ``score_thr``, ``nms``, ``max_per_img``. ``None`` is 1000,
            0.025, NMS at IoU 0.6, and 100.
        init_cfg: ``None`` is normal weights of deviation 0.01, and class
            biases at ``prior_prob``.

    Raises:
        ValueError: An argument is out of its range.
    """

    default_loss_cls: dict
    default_loss_bbox: dict
    default_loss_dfl: dict
    default_train_cfg: dict
    default_test_cfg = dict(
        nms_pre=1000,
        score_thr=0.025,
        nms=dict(type='nms', iou_threshold=0.6),
        max_per_img=100,
    )

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        feat_channels: int = 96,
        stacked_convs: int = 2,
        strides: Sequence[int] = (8, 16, 32, 64),
        kernel_size: int = 5,
        reg_max: int = 7,
        use_depthwise: bool = True,
        norm_cfg: OptConfigType = None,
        act_cfg: OptConfigType = None,
        prior_prob: float = 0.01,
        loss_cls: OptConfigType = None,
        loss_bbox: OptConfigType = None,
        loss_dfl: OptConfigType = None,
        train_cfg: OptConfigType = None,
        test_cfg: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        check_positive(
            num_classes=num_classes,
            in_channels=in_channels,
            feat_channels=feat_channels,
            stacked_convs=stacked_convs,
            reg_max=reg_max,
        )
        check_odd(kernel_size=kernel_size)
        strides = rising('strides', strides, 1)
        if not is_number(prior_prob) or not 0 < prior_prob < 1:
            raise ValueError(
                f'prior_prob must be > 0 and < 1, got {prior_prob!r}'
            )
        cls_bias = dict(
            type='Normal', name='conv_cls', std=0.01, bias_prob=prior_prob
        )
        super().__init__(
            init_cfg
            or dict(type='Normal', layer='Conv2d', std=0.01, override=cls_bias)
        )
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.feat_channels = feat_channels
        self.strides = strides
        self.kernel_size = kernel_size
        self.reg_max = reg_max
        self.norm_cfg = norm_cfg or dict(type='BN')
        self.act_cfg = act_cfg or dict(type='HSwish')
        # The base class reads these, and `test_cfg`, by name.
        self.cls_out_channels = num_classes
        self.use_sigmoid_cls = True
        self.bbox_coder = DistancePointBBoxCoder()
        self.prior_generator = MlvlPointGenerator(self.strides, offset=0.5)

        block = DepthwiseSeparableConvModule if use_depthwise else ConvModule
        widths = [in_channels] + stacked_convs * [feat_channels]
        conv_cfg = dict(
            kernel_size=kernel_size,
            padding=kernel_size // 2,
            norm_cfg=self.norm_cfg,
            act_cfg=self.act_cfg,
        )
        # The containers of torch, not of mmengine: through those each
        # ConvModule would initialise itself after `init_cfg`, and undo it.
        self.towers = nn.ModuleList(
            nn.Sequential(*(block(*c, **conv_cfg) for c in pairwise(widths)))
            for _ in self.strides
        )
        self.conv_cls, self.conv_reg = (
            nn.ModuleList(
                nn.Conv2d(feat_channels, channels, 1) for _ in self.strides
            )
            for channels in (num_classes, 4 * (reg_max + 1))
        )
        self.integral = Integral(reg_max)

        self.loss_cls = MODELS.build(loss_cls or self.default_loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox or self.default_loss_bbox)
        self.loss_dfl = MODELS.build(loss_dfl or self.default_loss_dfl)
        self.train_cfg = ConfigDict(train_cfg or self.default_train_cfg)
        self.assigner = TASK_UTILS.build(self.train_cfg.assigner)
        self.test_cfg = ConfigDict(test_cfg or self.default_test_cfg)

    def extract(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Run the tower of every level of ``x``, see :meth:`forward`.

        Raises:
            ValueError: There are not as many levels as strides.
        """
        if len(x) != len(self.strides):
            raise ValueError(
                f'{len(self.strides)} feature maps expected, got {len(x)}'
            )
        return [tower(y) for tower, y in zip(self.towers, x, strict=True)]

    def predict_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        *args,
        **kwargs,
    ) -> InstanceList:
        """Turn class logits and distances into detections.

        Per level the ``nms_pre`` best pairs of cell and class above
        ``score_thr`` are kept, boxes are clipped to the image, and NMS runs
        per class over all levels. Computed in fp32, also within autocast.

        Args:
            cls_scores: As returned by :meth:`forward`.
            bbox_preds: As returned by :meth:`forward`.
            *args: As for mmdet's ``BaseDenseHead``, like ``kwargs``.
            **kwargs: Likewise.

        Returns:
            One per image: ``bboxes`` ``(n, 4)``, ``xyxy`` in pixels,
            ``scores`` ``(n,)`` and ``labels`` ``(n,)``.
        """
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            distances = [
                s * self._distances(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                for x, s in zip(bbox_preds, self.strides, strict=True)
            ]
            logits = [x.float() for x in cls_scores]
            return super().predict_by_feat(logits, distances, *args, **kwargs)

    def _distances(self, distributions: Tensor) -> Tensor:
        """``(..., 4 * (reg_max + 1))`` logits to ``(..., 4)`` strides."""
        distances = self.integral(distributions.float())
        return distances.reshape(*distributions.shape[:-1], 4)

    def _decode(self, distributions: Tensor, priors: Tensor) -> Tensor:
        """Boxes ``(B, n, 4)`` in pixels of logits ``(B, n, ...)``."""
        points, strides = priors.split(2, dim=1)
        distances = self._distances(distributions) * strides.repeat(1, 2)
        points = points.expand(len(distances), -1, 2)
        return self.bbox_coder.decode(points, distances)

    def _loss_inputs(
        self, cls_scores: list[Tensor], bbox_preds: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
        """Scores, distributions, boxes, priors, and each level's number."""
        priors = self.prior_generator.grid_priors(
            [x.shape[-2:] for x in cls_scores],
            device=cls_scores[0].device,
            with_stride=True,
        )
        level_sizes, priors = [len(x) for x in priors], torch.cat(priors)
        scores = flatten_levels(cls_scores)
        distributions = flatten_levels(bbox_preds)
        boxes = self._decode(distributions.detach(), priors)
        return scores, distributions, boxes, priors, level_sizes

    def _box_losses(
        self,
        cells: Tensor,
        matched: Tensor,
        distributions: Tensor,
        priors: Tensor,
        gts: GroundTruth,
        weights: Tensor,
        factor: Tensor,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of boxes and distributions, and the IoUs of positives."""
        sides = distributions.flatten(0, 1)[cells]
        centres, strides = priors[cells % len(priors)].split(2, dim=1)
        points, targets = centres / strides, gts.boxes[matched]
        targets = targets / strides.repeat(1, 2)
        boxes = self.bbox_coder.decode(points, self._distances(sides))
        bins = self.bbox_coder.encode(points, targets, self.reg_max)
        loss_bbox = self.loss_bbox(boxes, targets, weights, factor)
        loss_dfl = self.loss_dfl(
            sides.reshape(-1, self.reg_max + 1),
            bins.flatten(),
            weights.repeat_interleave(4),
            4 * factor,  # the mean over the four sides of a box
        )
        losses = dict(loss_bbox=loss_bbox, loss_dfl=loss_dfl)
        return losses, bbox_overlaps(boxes.detach(), targets, is_aligned=True)


def flatten_levels(maps: list[Tensor]) -> Tensor:
    """Maps ``(B, C, H, W)`` of all levels to fp32 ``(B, n, C)``."""
    return torch.cat([x.flatten(2).transpose(1, 2).float() for x in maps], 1)


@MODELS.register_module()
class PicoHead(BasePicoHead):
    """Anchor-free head of PicoDet (v1).

    `PP-PicoDet: A Better Real-Time Object Detector on Mobile Devices
    <https://arxiv.org/abs/2111.00902>`_. The classes and the distances are
    predicted from the tower of each level as it is.

    The original has one 1x1 convolution for both. Two compute the same, and
    a checkpoint for other classes keeps its distance weights.

    The arguments and errors are those of :class:`BasePicoHead`. The losses
    are by default ``VarifocalLoss`` (alpha 0.75, gamma 2), ``GIoULoss``
    (weight 2) and ``DistributionFocalLoss`` (weight 0.25); the assigner is
    ``PicoSimOTAAssigner``.
    """

    # mmdet's defaults: alpha 0.75, gamma 2.
    default_loss_cls = dict(type='mmdet.VarifocalLoss', use_sigmoid=True)
    default_loss_bbox = dict(type='mmdet.GIoULoss', loss_weight=2.0)
    default_loss_dfl = dict(
        type='mmdet.DistributionFocalLoss', loss_weight=0.25
    )
    default_train_cfg = dict(assigner=dict(type=PicoSimOTAAssigner))

    def forward(
        self, x: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Predict from the features of every level.

        Args:
            x: One ``(B, in_channels, H, W)`` per stride.

        Returns:
            Class logits, one ``(B, num_classes, H, W)`` per level, and
            distance logits, one ``(B, 4 * (reg_max + 1), H, W)`` per level:
            all bins of the left side, then of the top, right and bottom.

        Raises:
            ValueError: There are not as many levels as strides.
        """
        feats = self.extract(x)
        cls_scores, bbox_preds = (
            [conv(feat) for conv, feat in zip(convs, feats, strict=True)]
            for convs in (self.conv_cls, self.conv_reg)
        )
        return cls_scores, bbox_preds

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: OptInstanceList = None,
    ) -> dict[str, Tensor]:
        """Compute the three losses, in fp32 also within autocast.

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
            batch_gt_instances_ignore: Given to an assigner of mmdet;
                ``PicoSimOTAAssigner`` makes no use of it.

        Returns:
            ``loss_cls``, ``loss_bbox`` and ``loss_dfl``, scalars. Without a
            positive the last two are zero, and still have a gradient.
        """
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            logits, distributions, boxes, priors, level_sizes = (
                self._loss_inputs(cls_scores, bbox_preds)
            )
            gts = GroundTruth.of_batch(batch_gt_instances)
            seen = logits.detach().sigmoid(), boxes, priors
            if hasattr(self.assigner, 'assign_batch'):
                cells, matched, _ = self.assigner.assign_batch(
                    *seen, gts, level_sizes
                )
            else:
                ignored = batch_gt_instances_ignore or [None] * len(logits)
                cells, matched = assign_one_by_one(
                    self.assigner, *seen, batch_gt_instances, ignored
                )
            counts = cells.new_zeros(len(logits))
            # An image with boxes counts as one positive at least.
            least = counts.index_fill(0, gts.images, 1)
            images = cells // len(priors)
            counts.index_add_(0, images, torch.ones_like(images))
            num_pos = counts.maximum(least).sum()

            logits = logits.flatten(0, 1)
            weights = logits.detach()[cells].sigmoid().amax(dim=1)
            cls_factor = reduce_mean(num_pos.float()).clamp(min=1)
            box_factor = reduce_mean(weights.sum()).clamp(min=1)
            losses, overlaps = self._box_losses(
                cells, matched, distributions, priors, gts, weights, box_factor
            )
            quality = torch.zeros_like(logits)
            quality[cells, gts.labels[matched]] = overlaps
            loss_cls = self.loss_cls(logits, quality, avg_factor=cls_factor)
            return dict(loss_cls=loss_cls, **losses)


class PicoSE(BaseModule):
    """Gate of the channels (B, C, H, W) by their means, and a mixing of them.

    ``norm_cfg`` and ``act_cfg`` are of what follows the mixing.
    """

    def __init__(self, channels: int, norm_cfg: dict, act_cfg: dict) -> None:
        fc = dict(type='Normal', name='fc', std=0.001)
        super().__init__(
            dict(type='Normal', layer='Conv2d', std=0.01, override=fc)
        )
        self.fc = nn.Conv2d(channels, channels, 1)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.act = build_activation_layer(act_cfg)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc(F.adaptive_avg_pool2d(x, 1)).sigmoid()
        return self.act(self.norm(self.conv(x * gate)))


class AlignBranch(BaseModule):
    """Logit (B, 1, H, W) of how well box and class of a cell agree.

    A full convolution of ``kernel_size`` and a 1x1, with ``act_cfg`` between.
    """

    def __init__(
        self, channels: int, kernel_size: int, norm_cfg: dict, act_cfg: dict
    ) -> None:
        kaiming = dict(mode='fan_in', distribution='uniform')
        super().__init__(dict(type='Kaiming', layer='Conv2d', **kaiming))
        # A container of torch, or `ConvModule` would undo `init_cfg`.
        cfg = dict(padding=kernel_size // 2, act_cfg=act_cfg)
        self.layers = nn.Sequential(
            ConvModule(channels, 1, kernel_size, norm_cfg=norm_cfg, **cfg),
            ConvModule(1, 1, 1, norm_cfg=norm_cfg, act_cfg=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def joint_score(
    cls_logits: Tensor, align_logits: Tensor, differentiable: bool = True
) -> Tensor:
    """Geometric mean of the probabilities of a class and of the alignment.

    Logits are ``(B, num_classes, H, W)`` and ``(B, 1, H, W)``, the scores in
    fp32, also within autocast. What is not ``differentiable`` has no gradient
    at logits below -88; there and elsewhere its values are the same.
    """
    logits = cls_logits.float(), align_logits.float()
    if differentiable:
        joint = logits[0].sigmoid() * logits[1].sigmoid()
    else:
        # The root makes 3e-4 of the 1.4e-7 by which ONNX Runtime's sigmoid is
        # off at very negative logits; its exponential is exact.
        joint = 1 / ((1 + (-logits[0]).exp()) * (1 + (-logits[1]).exp()))
    # Differentiable also where both factors vanish.
    return (joint + 1e-9).sqrt()


@MODELS.register_module()
class ActivatedVarifocalLoss(nn.Module):
    """Varifocal loss of probabilities, where mmdet's takes logits.

    `VarifocalNet: An IoU-aware Dense Object Detector
    <https://arxiv.org/abs/2008.13367>`_: the binary cross-entropy of every
    class with its target ``q``, weighted by ``q`` where ``q > 0`` and by
    ``alpha * p ** gamma`` where it is zero. The weight is differentiated too.
    At ``p = 0`` and ``p = 1`` torch keeps the loss and its gradient finite.

    Args:
        alpha: Weight of the background.
        gamma: Exponent of the background's probability.
        reduction: ``'none'``, ``'mean'`` or ``'sum'``.
        loss_weight: Factor of the whole.

    Raises:
        ValueError: An argument is not among the allowed values.
    """

    def __init__(
        self,
        alpha: float = 0.75,
        gamma: float = 2.0,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_not_negative(alpha=alpha, gamma=gamma)
        check_one_of(('none', 'mean', 'sum'), reduction=reduction)
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Compute the loss, as mmdet's losses do.

        Args:
            pred: Probabilities of any shape.
            target: Targets in [0, 1] of the same shape.
            weight: Factors of the elements, of the same shape.
            avg_factor: Divisor of the sum when the reduction is ``'mean'``.
            reduction_override: Instead of ``reduction``.
        """
        focal = target.where(target > 0, self.alpha * pred.pow(self.gamma))
        loss = focal * F.binary_cross_entropy(pred, target, reduction='none')
        return self.loss_weight * weight_reduce_loss(
            loss, weight, reduction_override or self.reduction, avg_factor
        )


@MODELS.register_module()
class PicoHeadV2(BasePicoHead):
    """Anchor-free head of PicoDet v2.

    After the tower of a level the channels are gated (:class:`PicoSE`), and
    classes and distances are predicted from that. A branch on the tower
    itself (:class:`AlignBranch`) tells how well the two agree; the score of a
    class is the root of the product of both probabilities. Facts of the
    layers follow PaddleDetection's ``pico_head.py``.

    The arguments and errors are those of :class:`BasePicoHead`, and
    ``train_cfg`` has, as in mmdet's TOOD, ``initial_assigner`` for the first
    ``initial_epoch`` epochs and ``assigner`` for the others, which the head
    changes by the epoch of mmengine's runner. By default these are
    ``PicoATSSAssigner`` for 100 epochs and ``PicoTaskAlignedAssigner``, and
    the losses ``ActivatedVarifocalLoss``, ``GIoULoss`` (weight 2.5) and
    ``DistributionFocalLoss`` (weight 0.5). ``loss_cls`` gets probabilities.

    Raises:
        ValueError: ``train_cfg`` lacks one of the three, an assigner has no
            ``assign_batch``, or ``initial_epoch`` is not an integer >= 0.
    """

    default_loss_cls = dict(type=ActivatedVarifocalLoss)
    default_loss_bbox = dict(type='mmdet.GIoULoss', loss_weight=2.5)
    default_loss_dfl = dict(
        type='mmdet.DistributionFocalLoss', loss_weight=0.5
    )
    default_train_cfg = dict(
        initial_epoch=100,
        initial_assigner=dict(type=PicoATSSAssigner),
        assigner=dict(type=PicoTaskAlignedAssigner),
    )

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *args,
        train_cfg: OptConfigType = None,
        **kwargs,
    ) -> None:
        train_cfg = train_cfg or self.default_train_cfg
        if not self.default_train_cfg.keys() <= train_cfg.keys():
            raise ValueError(
                'train_cfg must have the keys initial_epoch, initial_assigner '
                f'and assigner, got {sorted(train_cfg)}'
            )
        epoch = train_cfg['initial_epoch']
        if type(epoch) is not int or epoch < 0:
            raise ValueError(
                f'initial_epoch must be an integer >= 0, got {epoch!r}'
            )
        super().__init__(
            num_classes, in_channels, *args, train_cfg=train_cfg, **kwargs
        )
        self.initial_epoch = epoch
        initial_cfg = self.train_cfg.initial_assigner
        self.initial_assigner = TASK_UTILS.build(initial_cfg)
        for name in ('initial_assigner', 'assigner'):
            if not hasattr(getattr(self, name), 'assign_batch'):
                raise ValueError(
                    f'{name} must assign whole batches, as PicoATSSAssigner '
                    f'does, got {type(getattr(self, name)).__name__}'
                )
        cfg = dict(norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        self.se = ModuleList(
            PicoSE(self.feat_channels, **cfg) for _ in self.strides
        )
        self.align = ModuleList(
            AlignBranch(self.feat_channels, self.kernel_size, **cfg)
            for _ in self.strides
        )

    def forward(
        self, x: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Predict from the features of every level.

        As :meth:`PicoHead.forward`, but for the class scores, which are
        probabilities in fp32.
        """
        feats = self.extract(x)
        cls_scores, bbox_preds = [], []
        for i, feat in enumerate(feats):
            mixed, agreement = self.se[i](feat), self.align[i](feat)
            logits = self.conv_cls[i](mixed)
            cls_scores.append(joint_score(logits, agreement, self.training))
            bbox_preds.append(self.conv_reg[i](mixed))
        return cls_scores, bbox_preds

    def predict_by_feat(
        self, cls_scores: list[Tensor], *args, **kwargs
    ) -> InstanceList:
        """Turn class scores and distances into detections, as the base."""
        # mmdet takes the sigmoid of what it is given.
        logits = [x.float().logit() for x in cls_scores]
        return super().predict_by_feat(logits, *args, **kwargs)

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: OptInstanceList = None,
    ) -> dict[str, Tensor]:
        """Compute the three losses, in fp32 also within autocast.

        The target score that the assigner gives to a positive is its class
        target, and the weight of its box and distribution losses. All three
        are divided by the sum of these scores, which is averaged over the
        GPUs and at least 1; the original knows the floor with several GPUs
        alone. Regions to be ignored train as background. Arguments and
        results are those of :meth:`PicoHead.loss_by_feat`.
        """
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            scores, distributions, boxes, priors, level_sizes = (
                self._loss_inputs(cls_scores, bbox_preds)
            )
            gts = GroundTruth.of_batch(batch_gt_instances)
            cells, matched, weights = self.current_assigner().assign_batch(
                scores.detach(), boxes, priors, gts, level_sizes
            )
            scores = scores.flatten(0, 1)
            quality = torch.zeros_like(scores)
            quality[cells, gts.labels[matched]] = weights
            factor = reduce_mean(weights.sum()).clamp(min=1)
            loss_cls = self.loss_cls(scores, quality, avg_factor=factor)
            losses, _ = self._box_losses(
                cells, matched, distributions, priors, gts, weights, factor
            )
            return dict(loss_cls=loss_cls, **losses)

    def current_assigner(self) -> PicoAssigner:
        """Return the assigner of the runner's epoch; without one it is 0."""
        epoch = MessageHub.get_current_instance().get_info('epoch', 0)
        initial = epoch < self.initial_epoch
        return self.initial_assigner if initial else self.assigner
