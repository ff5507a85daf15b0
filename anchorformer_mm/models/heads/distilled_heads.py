"""Classification heads with a second classifier that learns from a teacher.

Hard-label distillation of DeiT (arXiv 2012.12877, section 4, equation 3).
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from mmpretrain.evaluation.metrics import Accuracy
from mmpretrain.models.heads import DeiTClsHead, LeViTClsHead
from mmpretrain.structures import DataSample
from torch import Tensor

from anchorformer_mm.registry import MODELS


class HardDistillation(ABC):
    """What turns an mmpretrain head with two classifiers into a student.

    To be listed before a class derived from mmpretrain's ``ClsHead``, which
    keeps its parameters, hence also its checkpoints. The first classifier
    learns the labels with the head's own loss, the second learns the class
    that the teacher finds likeliest with plain cross-entropy, and the
    prediction is the mean of both.

    Args:
        *args: As for the other base class.
        distill_weight: Weight of the teacher's term, between 0 and 1; the
            labels' term has the rest.
        **kwargs: As for the other base class.

    Raises:
        ValueError: ``distill_weight`` is not between 0 and 1.
    """

    def __init__(self, *args, distill_weight: float = 0.5, **kwargs) -> None:
        if not 0 <= distill_weight <= 1:
            raise ValueError(
                f'distill_weight must be in [0, 1], got {distill_weight!r}'
            )
        super().__init__(*args, **kwargs)
        self.distill_weight = distill_weight

    @abstractmethod
    def scores(self, feats: tuple) -> tuple[Tensor, Tensor]:
        """Return the scores (B, C) of both classifiers, before softmax.

        Args:
            feats: What the backbone, or the neck, gives for B images.
        """

    def forward(self, feats: tuple) -> Tensor:
        """Return the mean score (B, C), in training as in evaluation."""
        cls_score, dist_score = self.scores(feats)
        return (cls_score + dist_score) / 2

    def loss(
        self,
        feats: tuple,
        data_samples: list[DataSample],
        teacher_score: Tensor | None = None,
        **kwargs,
    ) -> dict[str, Tensor | list[Tensor]]:
        """Compute the losses of B images.

        Args:
            feats: What the backbone, or the neck, gives.
            data_samples: Hold ``gt_score`` (C,), e.g. of mixed images, or
                else ``gt_label`` (1,).
            teacher_score: Scores (B, C) of the teacher, before or after
                softmax. Without them both classifiers learn the labels.
            **kwargs: For the loss module.

        Returns:
            With a teacher ``loss_cls`` and ``loss_distill``, whose sum is
            equation 3; without one ``loss``. If ``cal_acc`` also the
            ``accuracy_top-k`` of the mean score, each one tensor in a list,
            in per cent.

        Raises:
            ValueError: ``teacher_score`` has another shape than the
                student's, or ``cal_acc`` meets mixed labels.
        """
        cls_score, dist_score = self.scores(feats)
        target = _target(data_samples)
        kwargs.setdefault('avg_factor', len(cls_score))
        loss_cls = self.loss_module(cls_score, target, **kwargs)
        if teacher_score is None:
            loss_dist = self.loss_module(dist_score, target, **kwargs)
            losses = dict(loss=(loss_cls + loss_dist) / 2)
        else:
            if teacher_score.shape != dist_score.shape:
                raise ValueError(
                    'teacher_score must have the shape '
                    f'{tuple(dist_score.shape)} of the student, got '
                    f'{tuple(teacher_score.shape)}'
                )
            loss_distill = F.cross_entropy(dist_score, teacher_score.argmax(1))
            losses = dict(
                loss_cls=(1 - self.distill_weight) * loss_cls,
                loss_distill=self.distill_weight * loss_distill,
            )
        if self.cal_acc:
            losses.update(self._accuracy((cls_score + dist_score) / 2, target))
        return losses

    def _accuracy(
        self, score: Tensor, target: Tensor
    ) -> dict[str, list[Tensor]]:
        if target.ndim != 1:
            raise ValueError(
                'cal_acc needs one label per image: set cal_acc=False when '
                'images are mixed or labels are turned into scores'
            )
        # By default only scores above 0 count, and these are no probabilities.
        accuracy = Accuracy.calculate(
            score, target, topk=self.topk, thrs=(None,)
        )
        return {
            f'accuracy_top-{k}': a
            for k, a in zip(self.topk, accuracy, strict=True)
        }


def _target(data_samples: list[DataSample]) -> Tensor:
    """Return the labels (B,), or their scores (B, C) if there are any."""
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples])
    return torch.cat([sample.gt_label for sample in data_samples])


@MODELS.register_module()
class DistilledDeiTClsHead(HardDistillation, DeiTClsHead):
    """mmpretrain's ``DeiTClsHead`` that trains.

    The first classifier sees the class token and the second one the
    distillation token of ``mmpretrain.DistilledVisionTransformer``. Names in
    the state dict are those of ``DeiTClsHead``.

    Args:
        *args: As for ``DeiTClsHead``.
        distill_weight: See :class:`HardDistillation`.
        **kwargs: As for ``DeiTClsHead``.

    Shape:
        - Input: the tokens of the last stage, a pair of (B, in_channels).
        - Output: (B, num_classes).
    """

    def scores(self, feats: tuple) -> tuple[Tensor, Tensor]:
        if isinstance(feats[-1], Tensor):
            # Unpacking would split a batch of two images instead.
            raise ValueError(
                'DistilledDeiTClsHead needs a class token and a distillation '
                'token, as mmpretrain.DistilledVisionTransformer gives them; '
                f'got one tensor of shape {tuple(feats[-1].shape)}'
            )
        cls_token, dist_token = self.pre_logits(feats)
        return self.layers.head(cls_token), self.layers.head_dist(dist_token)


@MODELS.register_module()
class DistilledLeViTClsHead(HardDistillation, LeViTClsHead):
    """mmpretrain's ``LeViTClsHead`` that trains in distillation.

    Both classifiers, each a batch normalisation and a linear layer, see the
    pooled feature. Names in the state dict are those of ``LeViTClsHead``.

    Args:
        num_classes: Classes C.
        in_channels: Channels of the pooled feature.
        distillation: Must be True; other configs of LeViT give it.
        deploy: Build each classifier as one linear layer, for the weights
            that are left after :meth:`switch_to_deploy`.
        **kwargs: ``distill_weight``, see :class:`HardDistillation`, and as
            for ``LeViTClsHead``.

    Raises:
        ValueError: ``distillation`` is not True.

    Shape:
        - Input: a tuple whose last item is (B, in_channels).
        - Output: (B, num_classes).
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        distillation: bool = True,
        deploy: bool = False,
        **kwargs,
    ) -> None:
        if distillation is not True:
            raise ValueError(
                f'distillation must be True, got {distillation!r}; '
                'mmpretrain.LeViTClsHead is the head without it'
            )
        # mmpretrain's own deploy=True ends in a TypeError.
        super().__init__(
            num_classes=num_classes, in_channels=in_channels, **kwargs
        )
        if deploy:
            self.switch_to_deploy()

    def scores(self, feats: tuple) -> tuple[Tensor, Tensor]:
        x = self.pre_logits(feats)
        return self.head(x), self.head_dist(x)
