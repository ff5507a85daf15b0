"""Attention transfer: anchor layers learn from those of a pretrained ViT.

First each layer alone, on the teacher's own tokens and without labels, then
the whole student from what the teacher puts out: the order in which softmax
attention of language models is replaced by a linear one (`LoLCATs, arXiv
2410.10254 <https://arxiv.org/abs/2410.10254>`_).
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from anchorformer_mm.models.argument_checks import (
    check_not_negative,
    check_one_of,
)
from anchorformer_mm.models.backbones import AnchorFormer
from anchorformer_mm.models.layers import SelfAttention
from anchorformer_mm.registry import MODELS
from anchorformer_mm.utils.checkpoint import fit_weights
from anchorformer_mm.utils.errors import UsageError

TARGETS = ('attention', 'logits', 'features')


class FrozenTeacher:
    """Mixin of a model with a teacher, which is no part of it.

    The teacher is loaded at the first training step. It is in no checkpoint,
    optimiser or averaged copy: copies and pickles load one of their own.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        # A list hides it from nn.Module, which would make it a part.
        self.teacher = []

    @abstractmethod
    def load_teacher(self) -> nn.Module:
        """Build the teacher, with its weights."""

    def frozen_teacher(self, like: Tensor) -> nn.Module:
        """The teacher in evaluation mode, of a tensor's type and device."""
        if not self.teacher:
            teacher = self.load_teacher()
            self.teacher.append(teacher.eval().requires_grad_(False))
        return self.teacher[0].to(like)

    def __getstate__(self) -> dict:
        """Leave the teacher out of copies and pickles."""
        return {**self.__dict__, 'teacher': []}


@MODELS.register_module(name='AttentionTransfer')
def attention_transfer(student: str, **kwargs) -> BaseModel:
    """Build a classifier or segmentor that learns from a ViT.

    It is the plain model but for its losses: predictions, the names in its
    checkpoints and what tools do with it are the same.

    Args:
        student: Type of the model, of mmpretrain or mmseg.
        **kwargs: Of :class:`AttentionTransfer`, and of that type.

    Raises:
        ValueError: An argument is out of its range, or the backbone is no
            :class:`AnchorFormer`.
    """
    with MODELS.switch_scope_and_registry(None) as registry:
        base = registry.get(student)
    if base is None:
        raise ValueError(f'student={student!r} is no model that is registered')
    kind = type(f'Transfer{base.__name__}', (AttentionTransfer, base), {})
    # Building a model writes into its config.
    teacher_cfg = deepcopy(dict(kwargs, type=student))
    for name in ('teacher_ckpt', 'target', 'label_weight'):
        teacher_cfg.pop(name, None)
    return kind(teacher_cfg=teacher_cfg, **kwargs)


class AttentionTransfer(FrozenTeacher):
    """What :func:`attention_transfer` adds to a classifier or segmentor.

    The teacher is the student with softmax attention in place of anchors.
    Layers of the student that are vanilla themselves have nothing to learn
    in the first stage.

    Args:
        teacher_ckpt: File with the weights of a ViT, by the names of
            mmpretrain or timm; for ``target='logits'`` of a whole model of
            the student's type. None: the model only predicts.
        target: What is learned.

            - ``'attention'``, stage 1: every anchor layer sees the tokens
              that the teacher's layer sees, and learns what that puts out.
              Attention layers alone train, and no labels are used.
            - ``'logits'``, stage 2: the student learns the teacher's
              probabilities (Kullback-Leibler divergence from them).
            - ``'features'``, stage 2: the student learns what the teacher's
              backbone puts out for each of ``out_indices``.
        label_weight: Weight of the model's own losses in stage 2. At 0 no
            labels are used.
        teacher_cfg: Config of the student.
        **kwargs: Of the model.

    Losses of attention and features are squared errors over the variance of
    what the teacher has, a layer: 0 is the teacher itself, 1 its mean.
    """

    def __init__(
        self,
        *,
        teacher_ckpt: str | None,
        target: str = 'attention',
        label_weight: float = 0.0,
        teacher_cfg: dict,
        **kwargs,
    ) -> None:
        check_one_of(TARGETS, target=target)
        check_not_negative(label_weight=label_weight)
        if target == 'attention' and label_weight:
            raise ValueError(
                "target='attention' learns without labels: label_weight must "
                f'be 0, got {label_weight!r}'
            )
        super().__init__(**kwargs)
        if not isinstance(self.backbone, AnchorFormer):
            raise ValueError(
                'the backbone of a transfer must be anchorformer_mm.'
                f'AnchorFormer, got {type(self.backbone).__name__}'
            )
        self.teacher_ckpt = teacher_ckpt
        self.target = target
        self.label_weight = label_weight
        self.teacher_cfg = teacher_cfg
        # What would get no gradient stops distributed training.
        trained = [self]
        if target == 'attention':
            trained = [layer.attn for layer in self._pupils().values()]
        elif not label_weight:
            names = ('backbone',)
            if target == 'logits':
                names += ('neck', 'head', 'decode_head')
            trained = filter(None, (getattr(self, n, None) for n in names))
        kept = {id(p) for part in trained for p in part.parameters()}
        for parameter in self.parameters():
            if id(parameter) not in kept:
                parameter.requires_grad_(False)

    def _pupils(self) -> dict[int, nn.Module]:
        """Layers that run and have anchors, by their numbers."""
        last = self.backbone.out_indices[-1]
        layers = enumerate(self.backbone.layers[: last + 1])
        found = {
            i: layer
            for i, layer in layers
            if not isinstance(layer.attn, SelfAttention)
        }
        if not found:
            raise ValueError(
                "target='attention' needs a student with anchors, got "
                'vanilla attention in all layers'
            )
        return found

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Compute the losses of B images (B, 3, H, W).

        Raises:
            UsageError: There is no teacher, its file cannot be read, or it is
                of another model than the student.
        """
        teacher = self.frozen_teacher(inputs)
        if self.target == 'attention':
            return self._attention_losses(teacher, inputs)
        losses = {}
        with _calls_of([self.backbone]) as calls:
            if self.label_weight:
                for name, value in super().loss(inputs, data_samples).items():
                    # Accuracies stay as they are.
                    factor = self.label_weight if 'loss' in name else 1
                    losses[f'labels.{name}'] = value * factor
            else:
                self.backbone(inputs)
        ((_, features),) = calls
        with torch.no_grad():
            wanted = teacher.backbone(inputs)
            if self.target == 'logits':
                wanted = _logits(teacher, wanted).log_softmax(1)
        if self.target == 'logits':
            found = _logits(self, features).log_softmax(1)
            loss = F.kl_div(found, wanted, reduction='none', log_target=True)
            return losses | dict(loss_logits=loss.sum(1).mean())
        for i, found, map_ in zip(
            self.backbone.out_indices, features, wanted, strict=True
        ):
            losses[f'loss_features{i}'] = unexplained(found, map_)
        return losses

    def _attention_losses(
        self, teacher: nn.Module, inputs: Tensor
    ) -> dict[str, Tensor]:
        pupils = self._pupils()
        layers = [teacher.backbone.layers[i].attn for i in pupils]
        with torch.no_grad(), _calls_of(layers) as calls:
            teacher.backbone(inputs)
        return {
            f'loss_layer{i}': unexplained(layer.attn(*args), wanted)
            for (i, layer), (args, wanted) in zip(
                pupils.items(), calls, strict=True
            )
        }

    def load_teacher(self) -> nn.Module:
        # Conversion builds on models, and is needed for training alone.
        from anchorformer_mm.conversion import vit

        path = self.teacher_ckpt
        if path is None:
            raise UsageError(
                'teacher_ckpt=None builds a model that only predicts; '
                'training needs the file of a teacher'
            )
        try:
            source = vit.vit_weights(vit.read_checkpoint(path))
            cfg = deepcopy(self.teacher_cfg)
            vanilla = dict(attention='vanilla', attn_cfg=source.attn_cfg)
            cfg['backbone'] = dict(cfg['backbone'], init_cfg=None, **vanilla)
            teacher = MODELS.build(cfg)
            vit.warm_start(source, teacher.backbone)
            if self.target == 'logits':
                weights = teacher.backbone.state_dict(prefix='backbone.')
                weights |= {f'head.{n}': v for n, v in source.head.items()}
                weights |= source.other
                fit_weights(teacher, weights, path, strict=True)
                teacher.load_state_dict(weights, strict=False)
        except UsageError as error:
            raise UsageError(
                f'teacher_ckpt={str(path)!r} is no teacher of the student of '
                f'this config: {error}'
            ) from None
        return teacher


@contextmanager
def _calls_of(modules: Sequence[nn.Module]) -> Iterator[list[tuple]]:
    """Collect the positional arguments and the output of every call."""
    calls = []
    hooks = [
        module.register_forward_hook(
            lambda module, args, output: calls.append((args, output))
        )
        for module in modules
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _logits(model: BaseModel, features: tuple) -> Tensor:
    """Scores (B, C, ...) of a classifier or segmentor, before softmax."""
    if model.with_neck:
        features = model.neck(features)
    head = model.head if hasattr(model, 'head') else model.decode_head
    return head(features)


def unexplained(found: Tensor | tuple, wanted: Tensor | tuple) -> Tensor:
    """Squared error over the variance of what is wanted.

    Args:
        found: Tokens (B, n, D), a map (B, D, H, W), vectors (B, D), or a
            tuple of such.
        wanted: Of the same shape.
    """
    if isinstance(found, tuple):
        return sum(map(unexplained, found, wanted)) / len(found)
    if found.ndim == 4:
        found, wanted = found.flatten(2).mT, wanted.flatten(2).mT
    rows = wanted.float().flatten(0, -2)
    # One vector has no variance.
    mean = rows.mean(0) if len(rows) > 1 else 0
    spread = (rows - mean).square().mean().clamp(min=1e-12)
    return F.mse_loss(found.float().flatten(0, -2), rows) / spread
