"""The head of PicoDet (v1)."""

from collections.abc import Sequence

from torch import Tensor

from anchorformer_mm.models.dense_heads.base_pico_head import BasePicoHead
from anchorformer_mm.models.dense_heads.pico_loss import PicoLossMixin
from anchorformer_mm.registry import MODELS


@MODELS.register_module()
class PicoHead(PicoLossMixin, BasePicoHead):
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

    default_loss_cls = dict(
        type='mmdet.VarifocalLoss',
        use_sigmoid=True,
        alpha=0.75,
        gamma=2.0,
        iou_weighted=True,
        loss_weight=1.0,
    )
    default_loss_bbox = dict(type='mmdet.GIoULoss', loss_weight=2.0)
    default_loss_dfl = dict(
        type='mmdet.DistributionFocalLoss', loss_weight=0.25
    )
    default_train_cfg = dict(
        assigner=dict(type='anchorformer_mm.PicoSimOTAAssigner')
    )

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
        cls_scores = [
            conv(feat) for conv, feat in zip(self.conv_cls, feats, strict=True)
        ]
        bbox_preds = [
            conv(feat) for conv, feat in zip(self.conv_reg, feats, strict=True)
        ]
        return cls_scores, bbox_preds
