"""Hard-label distillation: a classifier and heads that learn from a teacher.

DeiT (`arXiv 2012.12877 <https://arxiv.org/abs/2012.12877>`_, section 4,
equation 3). Importing this needs mmpretrain.
"""

from abc import ABC, abstractmethod
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from mmpretrain.evaluation.metrics import Accuracy
from mmpretrain.models import ClsDataPreprocessor, ImageClassifier
from mmpretrain.models.heads import DeiTClsHead, LeViTClsHead
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from anchorformer_mm.models.argument_checks import check_fractions
from anchorformer_mm.models.attention_transfer import FrozenTeacher
from anchorformer_mm.registry import MODELS
from anchorformer_mm.utils.checkpoint import weights_only


class HardDistillation(ABC):
    """Mixin that makes a student of an mmpretrain head of two classifiers.

    To be listed before a class derived from mmpretrain's ``ClsHead``, which
    keeps its parameters, hence also its checkpoints. The first classifier
    learns the labels with the head's own loss, the second learns the class
    that the teacher finds likeliest with plain cross-entropy, and the
    prediction is the mean of both.

    Args:
        distill_weight: Weight of the teacher's term, between 0 and 1; the
            labels' term has the rest. Other arguments are the head's.

    Raises:
        ValueError: ``distill_weight`` is not between 0 and 1.
    """

    def __init__(self, *args, distill_weight: float = 0.5, **kwargs) -> None:
        check_fractions(distill_weight=distill_weight)
        super().__init__(*args, **kwargs)
        self.distill_weight = distill_weight

    @abstractmethod
    def scores(self, feats: tuple) -> tuple[Tensor, Tensor]:
        """Return the scores (B, C) of both classifiers, before softmax."""

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
            feats: Outputs of the backbone, or the neck.
            data_samples: Hold ``gt_score`` (C,), or else ``gt_label`` (1,).
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
        if 'gt_score' in data_samples[0]:
            target = torch.stack([sample.gt_score for sample in data_samples])
        else:
            target = torch.cat([sample.gt_label for sample in data_samples])
        kwargs.setdefault('avg_factor', len(cls_score))
        loss_cls = self.loss_module(cls_score, target, **kwargs)
        if teacher_score is None:
            loss_dist = self.loss_module(dist_score, target, **kwargs)
            losses = dict(loss=(loss_cls + loss_dist) / 2)
        elif teacher_score.shape != dist_score.shape:
            raise ValueError(
                f'teacher_score must have the shape {tuple(dist_score.shape)} '
                f'of the student, got {tuple(teacher_score.shape)}'
            )
        else:
            loss_distill = F.cross_entropy(dist_score, teacher_score.argmax(1))
            losses = dict(
                loss_cls=(1 - self.distill_weight) * loss_cls,
                loss_distill=self.distill_weight * loss_distill,
            )
        if not self.cal_acc:
            return losses
        if target.ndim != 1:
            raise ValueError(
                'cal_acc needs one label per image: set cal_acc=False when '
                'images are mixed or labels are turned into scores'
            )
        # By default only scores above 0 count, and these are no probabilities.
        accuracy = Accuracy.calculate(
            (cls_score + dist_score) / 2, target, topk=self.topk, thrs=(None,)
        )
        for k, value in zip(self.topk, accuracy, strict=True):
            losses[f'accuracy_top-{k}'] = value
        return losses


@MODELS.register_module()
class DistilledDeiTClsHead(HardDistillation, DeiTClsHead):
    """mmpretrain's ``DeiTClsHead`` that trains.

    The first classifier sees the class token and the second one the
    distillation token of ``mmpretrain.DistilledVisionTransformer``. Names in
    the state dict are those of ``DeiTClsHead``.

    Arguments are those of ``DeiTClsHead`` and ``distill_weight``, see
    :class:`HardDistillation`.

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


@MODELS.register_module()
class DistilledImageClassifier(FrozenTeacher, ImageClassifier):
    """mmpretrain's ``ImageClassifier`` with hard-label distillation.

    A trained classifier, the teacher, sees the same augmented and mixed batch
    as the student, and the class that it finds likeliest is the label of the
    student's second classifier.

    The teacher is no part of the model: its parameters are in no state dict
    and reach neither the optimiser nor the gradient reduction, and a copy of
    the model, such as a moving average, comes without it. It always
    evaluates, on the device and in the type of the batch. It is built, and
    its weights are read, at the start of the first training step. So a
    trained student predicts, or is exported, where the teacher's weights are
    not; where not even its config is, with ``teacher_config=None``.

    The batch is converted from the student's normalisation and channel order
    to the teacher's where the two differ, which is exact for pixels and
    their mixtures. A teacher of which no ``data_preprocessor`` is known
    gets the student's batch as it is.

    Args:
        teacher_config: The teacher: the path of a config file, from the
            working folder; a name of the form ``'mmpretrain::deit/x.py'``; a
            config with the key ``model``; or such a model itself. None
            builds a model that only predicts.
        teacher_ckpt: Path or URL of the teacher's weights. Left out, they
            are the ``load_from`` of the config, or what the ``init_cfg`` or
            the ``pretrained`` of its model names.
        **kwargs: As for ``ImageClassifier``. The head must be a
            :class:`HardDistillation`.

    Raises:
        ValueError: The head cannot learn from a teacher; the config cannot be
            read, does not tell the number of classes, has another one than
            the student, names no weights, or has a preprocessor that is no
            ``ClsDataPreprocessor``.
    """

    def __init__(
        self,
        *,
        teacher_config: str | Path | Config | dict | None,
        teacher_ckpt: str | Path | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(self.head, HardDistillation):
            raise ValueError(
                'head must be anchorformer_mm.DistilledDeiTClsHead or another '
                f'that learns from a teacher, got {type(self.head).__name__}'
            )
        self.teacher_config = None
        if teacher_config is None:
            return
        self.teacher_config = _complete(teacher_config, teacher_ckpt)
        num_classes = self.teacher_config.model.head.num_classes
        if num_classes != self.head.num_classes:
            raise ValueError(
                f'the teacher has {num_classes} classes, the student '
                f'{self.head.num_classes}; they must have the same'
            )
        self.renormalise = nn.Identity()
        theirs = self.teacher_config.data_preprocessor
        if theirs is not None:
            theirs = dict(type='ClsDataPreprocessor') | theirs
            self.renormalise = _Renormalise(
                self.data_preprocessor, self._build_of_teacher(theirs)
            )

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample]
    ) -> dict[str, Tensor]:
        """Compute the losses (equation 3) of B labelled images (B, 3, H, W).

        Raises:
            ValueError: There is no teacher, or its weights cannot be read or
                do not fit it.
        """
        teacher_score = self.teacher_score(inputs)
        feats = self.extract_feat(inputs)
        return self.head.loss(feats, data_samples, teacher_score)

    @torch.no_grad()
    def teacher_score(self, inputs: Tensor) -> Tensor:
        """Return the teacher's probabilities (B, C) for (B, 3, H, W).

        Raises:
            ValueError: As :meth:`loss`.
        """
        teacher = self.frozen_teacher(inputs)
        # Not the raw output, which has a form of its own in some heads.
        samples = teacher.predict(self.renormalise(inputs))
        return torch.stack([sample.pred_score for sample in samples])

    def load_teacher(self) -> nn.Module:
        config = self.teacher_config
        if config is None:
            raise ValueError(
                'teacher_config=None builds a model that only predicts; '
                'training needs the config of a teacher'
            )
        teacher = self._build_of_teacher(config.model)
        settings = dict(map_location='cpu', strict=True, logger='current')
        try:
            with weights_only():
                load_checkpoint(teacher, config.load_from, **settings)
        except (OSError, RuntimeError, UnpicklingError) as error:
            raise ValueError(
                f'teacher_ckpt={config.load_from!r} cannot be loaded into '
                f'the teacher that teacher_config describes: {error}'
            ) from error
        return teacher

    def _build_of_teacher(self, config: dict) -> nn.Module:
        scope = self.teacher_config.default_scope
        with DefaultScope.overwrite_default_scope(scope):
            # The builder changes the dict that it is given.
            return MMPRETRAIN_MODELS.build(deepcopy(config))


class _Renormalise(nn.Module):
    """Conversion from one preprocessor's output to that of another."""

    def __init__(self, source: nn.Module, target: nn.Module) -> None:
        super().__init__()
        for preprocessor in (source, target):
            if not isinstance(preprocessor, ClsDataPreprocessor):
                raise ValueError(
                    'data_preprocessor of student and teacher must be a '
                    f'ClsDataPreprocessor, got {type(preprocessor).__name__}'
                )
        means = [getattr(p, 'mean', torch.zeros(1)) for p in (source, target)]
        stds = [getattr(p, 'std', torch.ones(1)) for p in (source, target)]
        self.flip = source.to_rgb != target.to_rgb
        if self.flip:
            means[0], stds[0] = means[0].flip(0), stds[0].flip(0)
        shift = (means[0] - means[1]) / stds[1]
        self.register_buffer('scale', stds[0] / stds[1], persistent=False)
        self.register_buffer('shift', shift, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.flip and x.size(1) == 3:
            x = x.flip(1)
        return x * self.scale + self.shift


def _complete(
    config: str | Path | Config | dict, ckpt: str | Path | None
) -> ConfigDict:
    """A teacher's model, weights (load_from), preprocessor and scope."""
    if isinstance(config, str | Path):
        name = str(config)
        try:
            config = (
                Config.fromstring(f'_base_ = {name!r}', '.py')
                if '::' in name
                else Config.fromfile(name)
            )
        except (OSError, ValueError, AssertionError) as error:
            raise ValueError(
                f'teacher_config={name!r} cannot be read: {error}; use '
                'teacher_config=None for a model that only predicts'
            ) from error
    if 'model' not in config:
        config = dict(model=config)
    model = config['model']
    head = model.get('head')
    if not isinstance(head, dict) or 'num_classes' not in head:
        raise ValueError(
            'teacher_config must be that of a classifier whose head tells '
            f'num_classes, got the head {head!r} in {model.get("type")!r}'
        )
    # A model dict itself may name a checkpoint for the whole.
    inits = model.get('init_cfg') or []
    inits = [inits] if isinstance(inits, dict) else inits
    own = [init['checkpoint'] for init in inits if 'checkpoint' in init]
    named = [config.get('load_from'), model.get('pretrained'), *own]
    ckpt = ckpt or next(filter(None, named), None)
    if ckpt is None:
        raise ValueError(
            'teacher_ckpt=None needs a teacher_config that names its weights '
            '(load_from, or a pretrained model): a teacher without is random'
        )
    key = 'data_preprocessor'
    return ConfigDict(
        model=model,
        load_from=str(ckpt),
        data_preprocessor=model.get(key) or config.get(key),
        default_scope=config.get('default_scope') or 'mmpretrain',
    )
