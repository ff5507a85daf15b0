"""The head of PicoDet v2."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_activation_layer, build_norm_layer
from mmdet.utils import InstanceList, OptConfigType
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from anchorformer_mm.models.dense_heads.base_pico_head import BasePicoHead
from anchorformer_mm.models.dense_heads.pico_loss_v2 import PicoLossV2Mixin
from anchorformer_mm.models.losses import ActivatedVarifocalLoss
from anchorformer_mm.models.task_modules import (
    PicoATSSAssigner,
    PicoTaskAlignedAssigner,
)
from anchorformer_mm.registry import MODELS, TASK_UTILS

# Keeps the root differentiable where both factors vanish.
_EPS = 1e-9


def joint_score(cls_logits: Tensor, align_logits: Tensor) -> Tensor:
    """Geometric mean of a class's and the alignment's probability.

    Args:
        cls_logits: ``(B, num_classes, H, W)``.
        align_logits: ``(B, 1, H, W)``.

    Returns:
        ``(B, num_classes, H, W)`` in fp32, also within autocast.
    """
    joint = cls_logits.float().sigmoid() * align_logits.float().sigmoid()
    return (joint + _EPS).sqrt()


class PicoSE(BaseModule):
    """Gates the channels by their means, and mixes them.

    Args:
        channels: Channels C.
        norm_cfg: Normalisation after the mixing.
        act_cfg: Activation after that.

    Shape:
        - Input: (B, C, H, W); output: (B, C, H, W).
    """

    def __init__(self, channels: int, norm_cfg: dict, act_cfg: dict) -> None:
        super().__init__(
            dict(
                type='Normal',
                layer='Conv2d',
                std=0.01,
                override=dict(type='Normal', name='fc', std=0.001),
            )
        )
        self.fc = nn.Conv2d(channels, channels, 1)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.act = build_activation_layer(act_cfg)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc(F.adaptive_avg_pool2d(x, 1)).sigmoid()
        return self.act(self.norm(self.conv(x * gate)))


class AlignBranch(BaseModule):
    """How well box and class of a cell agree, as a logit.

    Args:
        channels: Channels C of the input.
        kernel_size: Of the first, full convolution, odd.
        norm_cfg: Normalisation of both convolutions.
        act_cfg: Activation between them.

    Shape:
        - Input: (B, C, H, W); output: (B, 1, H, W).
    """

    def __init__(
        self, channels: int, kernel_size: int, norm_cfg: dict, act_cfg: dict
    ) -> None:
        super().__init__(
            dict(
                type='Kaiming',
                layer='Conv2d',
                mode='fan_in',
                nonlinearity='relu',
                distribution='uniform',
            )
        )
        # A container of torch, or `ConvModule` would undo `init_cfg`.
        self.layers = nn.Sequential(
            ConvModule(
                channels,
                1,
                kernel_size,
                padding=kernel_size // 2,
                norm_cfg=norm_cfg,
                act_cfg=act_cfg,
            ),
            ConvModule(1, 1, 1, norm_cfg=norm_cfg, act_cfg=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@MODELS.register_module()
class PicoHeadV2(PicoLossV2Mixin, BasePicoHead):
    """Anchor-free head of PicoDet v2.

    After the tower of a level the channels are gated (:class:`PicoSE`), and
    classes and distances are predicted from that. A branch on the tower
    itself (:class:`AlignBranch`) says how well the two agree; the score of a
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
        if not isinstance(epoch, int) or epoch < 0:
            raise ValueError(
                f'initial_epoch must be an integer >= 0, got {epoch!r}'
            )
        super().__init__(
            num_classes, in_channels, *args, train_cfg=train_cfg, **kwargs
        )
        self.initial_epoch = epoch
        self.initial_assigner = TASK_UTILS.build(
            self.train_cfg.initial_assigner
        )
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

        Args:
            x: One ``(B, in_channels, H, W)`` per stride.

        Returns:
            Class scores (probabilities, in fp32), one
            ``(B, num_classes, H, W)`` per level, and distance logits, one
            ``(B, 4 * (reg_max + 1), H, W)`` per level: all bins of the left
            side, then of the top, right and bottom.

        Raises:
            ValueError: There are not as many levels as strides.
        """
        cls_scores, bbox_preds = [], []
        for feat, se, align, conv_cls, conv_reg in zip(
            self.extract(x),
            self.se,
            self.align,
            self.conv_cls,
            self.conv_reg,
            strict=True,
        ):
            gated = se(feat)
            cls_scores.append(joint_score(conv_cls(gated), align(feat)))
            bbox_preds.append(conv_reg(gated))
        return cls_scores, bbox_preds

    def predict_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        *args,
        **kwargs,
    ) -> InstanceList:
        """As :meth:`BasePicoHead.predict_by_feat`, of probabilities."""
        # mmdet takes the sigmoid of what it is given.
        logits = [x.float().logit() for x in cls_scores]
        return super().predict_by_feat(logits, bbox_preds, *args, **kwargs)
