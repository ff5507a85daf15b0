"""What the heads of PicoDet v1 and v2 share."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.dense_heads.gfl_head import Integral
from mmdet.models.task_modules import (
    DistancePointBBoxCoder,
    MlvlPointGenerator,
)
from mmdet.utils import (
    InstanceList,
    OptConfigType,
    OptMultiConfig,
)
from mmengine.config import ConfigDict
from torch import Tensor, nn

from anchorformer_mm.models.argument_checks import (
    check_odd,
    check_positive,
    is_number,
)
from anchorformer_mm.registry import MODELS, TASK_UTILS


class BasePicoHead(BaseDenseHead):
    """Towers, predictors, priors and decoding of PicoDet's heads.

    Every level has its own tower of ``stacked_convs`` depthwise separable
    convolutions, shared by classification and regression, and two 1x1
    convolutions, for the classes and, for each of the four sides, for a
    distribution over the distances ``0..reg_max`` in strides. A subclass
    says what lies between the two, and how it is trained.

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
        if (
            not isinstance(strides, Sequence)
            or not strides
            or not all(map(is_number, strides))
            or any(a >= b for a, b in pairwise((0, *strides)))
        ):
            raise ValueError(
                f'strides must be one or more rising numbers > 0, got '
                f'{strides!r}'
            )
        check_odd(kernel_size=kernel_size)
        if not is_number(prior_prob) or not 0 < prior_prob < 1:
            raise ValueError(
                f'prior_prob must be > 0 and < 1, got {prior_prob!r}'
            )
        super().__init__(
            init_cfg
            or dict(
                type='Normal',
                layer='Conv2d',
                std=0.01,
                override=dict(
                    type='Normal',
                    name='conv_cls',
                    std=0.01,
                    bias_prob=prior_prob,
                ),
            )
        )
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.feat_channels = feat_channels
        self.strides = tuple(strides)
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

        # The containers of torch, not of mmengine: through those each
        # ConvModule would initialise itself after `init_cfg`, and undo it.
        def tower() -> nn.Sequential:
            widths = [in_channels] + stacked_convs * [feat_channels]
            return nn.Sequential(
                *(
                    block(
                        *pair,
                        kernel_size,
                        padding=kernel_size // 2,
                        norm_cfg=self.norm_cfg,
                        act_cfg=self.act_cfg,
                    )
                    for pair in pairwise(widths)
                )
            )

        def predictor(channels: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Conv2d(feat_channels, channels, 1) for _ in self.strides
            )

        self.towers = nn.ModuleList(tower() for _ in self.strides)
        self.conv_cls = predictor(num_classes)
        self.conv_reg = predictor(4 * (reg_max + 1))
        self.integral = Integral(reg_max)

        self.loss_cls = MODELS.build(loss_cls or self.default_loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox or self.default_loss_bbox)
        self.loss_dfl = MODELS.build(loss_dfl or self.default_loss_dfl)
        self.train_cfg = ConfigDict(train_cfg or self.default_train_cfg)
        self.assigner = TASK_UTILS.build(self.train_cfg.assigner)
        self.test_cfg = ConfigDict(
            test_cfg
            or dict(
                nms_pre=1000,
                score_thr=0.025,
                nms=dict(type='nms', iou_threshold=0.6),
                max_per_img=100,
            )
        )

    def extract(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Run the tower of every level.

        Args:
            x: One ``(B, in_channels, H, W)`` per stride.

        Returns:
            One ``(B, feat_channels, H, W)`` per stride.

        Raises:
            ValueError: There are not as many levels as strides.
        """
        if len(x) != len(self.strides):
            raise ValueError(
                f'{len(self.strides)} feature maps expected, got {len(x)}'
            )
        return [
            tower(feat) for tower, feat in zip(self.towers, x, strict=True)
        ]

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
            cls_scores: Class logits, one ``(B, num_classes, H, W)`` per
                level.
            bbox_preds: Distance logits, one
                ``(B, 4 * (reg_max + 1), H, W)`` per level.
            *args: As of mmdet's ``BaseDenseHead.predict_by_feat``.
            **kwargs: As of mmdet's ``BaseDenseHead.predict_by_feat``.

        Returns:
            One per image: ``bboxes`` ``(n, 4)``, ``xyxy`` in pixels,
            ``scores`` ``(n,)`` and ``labels`` ``(n,)``.
        """
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            distances = [
                self._distances(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                * stride
                for x, stride in zip(bbox_preds, self.strides, strict=True)
            ]
            cls_scores = [x.float() for x in cls_scores]
            return super().predict_by_feat(
                cls_scores, distances, *args, **kwargs
            )

    def _distances(self, distributions: Tensor) -> Tensor:
        """``(..., 4 * (reg_max + 1))`` logits to ``(..., 4)`` strides."""
        distances = self.integral(distributions.float())
        return distances.reshape(*distributions.shape[:-1], 4)

    def _decode(self, distributions: Tensor, priors: Tensor) -> Tensor:
        """Boxes of all priors of all images.

        Args:
            distributions: ``(B, n, 4 * (reg_max + 1))`` logits.
            priors: ``(n, 4)``, centre and strides in pixels.

        Returns:
            ``(B, n, 4)``, ``xyxy`` in pixels.
        """
        points, strides = priors.split(2, dim=1)
        distances = self._distances(distributions) * strides.repeat(1, 2)
        points = points.expand(len(distances), -1, 2)
        return self.bbox_coder.decode(points, distances)


def flatten_levels(maps: list[Tensor]) -> Tensor:
    """Maps ``(B, C, H, W)`` of all levels to fp32 ``(B, n, C)``."""
    return torch.cat(
        [x.flatten(2).transpose(1, 2).float() for x in maps], dim=1
    )
