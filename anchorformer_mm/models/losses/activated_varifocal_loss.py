"""The varifocal loss of probabilities."""

import torch.nn.functional as F
from mmdet.models.losses.utils import weight_reduce_loss
from torch import Tensor, nn

from anchorformer_mm.registry import MODELS


@MODELS.register_module()
class ActivatedVarifocalLoss(nn.Module):
    """Varifocal loss of probabilities, where mmdet's takes logits.

    `VarifocalNet: An IoU-aware Dense Object Detector
    <https://arxiv.org/abs/2008.13367>`_: the binary cross-entropy of every
    class with its target ``q``, weighted by ``q`` where ``q > 0`` and by
    ``alpha * p ** gamma`` where it is zero. The weight is differentiated too.

    At ``p = 0`` and ``p = 1`` the loss and its gradient with respect to
    ``p`` stay finite: torch bounds both.

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
        for name, value in (('alpha', alpha), ('gamma', gamma)):
            if not value >= 0:
                raise ValueError(f'{name} must be >= 0, got {value!r}')
        if reduction not in ('none', 'mean', 'sum'):
            raise ValueError(
                f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}"
            )
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
        """Compute the loss.

        Args:
            pred: Probabilities of any shape.
            target: Targets in [0, 1] of the same shape.
            weight: Factors of the elements, of the same shape.
            avg_factor: Divisor of the sum when the reduction is ``'mean'``.
            reduction_override: Instead of ``reduction``.

        Returns:
            A scalar, or for ``'none'`` a tensor of the shape of ``pred``.
        """
        focal = target.where(target > 0, self.alpha * pred.pow(self.gamma))
        loss = focal * F.binary_cross_entropy(pred, target, reduction='none')
        return self.loss_weight * weight_reduce_loss(
            loss, weight, reduction_override or self.reduction, avg_factor
        )
