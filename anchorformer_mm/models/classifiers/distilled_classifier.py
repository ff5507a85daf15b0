"""A classifier that also learns from a larger, trained one."""

from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from mmpretrain.models import ClsDataPreprocessor, ImageClassifier
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from anchorformer_mm.models.heads import HardDistillation
from anchorformer_mm.registry import MODELS
from anchorformer_mm.utils.checkpoint import weights_only


@MODELS.register_module()
class DistilledImageClassifier(ImageClassifier):
    """mmpretrain's ``ImageClassifier`` with hard-label distillation.

    DeiT (arXiv 2012.12877, section 4): a trained classifier, the teacher,
    sees the same augmented and mixed batch as the student, and the class
    that it finds likeliest is a second label for the student's second
    classifier.

    The teacher is no part of the model: its parameters are in no state dict
    and reach neither the optimiser nor the gradient reduction, and a copy of
    the model, such as a moving average, comes without it. It always
    evaluates, and moves along with the model. It is built, and its weights
    are read, at the start of the first training step. So a trained student
    predicts, or is exported, where the teacher's weights are not; where not
    even its config is, with ``teacher_config=None``.

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
            :class:`~anchorformer_mm.models.heads.HardDistillation`.

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
                'head must be one that learns from a teacher, such as '
                'anchorformer_mm.DistilledDeiTClsHead or '
                'anchorformer_mm.DistilledLeViTClsHead, got '
                f'{type(self.head).__name__}'
            )
        self._teacher = None
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
        preprocessor = self.teacher_config.data_preprocessor
        if preprocessor is not None:
            self.renormalise = _Renormalise(
                self.data_preprocessor,
                self._build_of_teacher(
                    dict(type='ClsDataPreprocessor') | preprocessor
                ),
            )

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample]
    ) -> dict[str, Tensor]:
        """Compute the losses of equation 3.

        Args:
            inputs: Normalised, possibly mixed images (B, 3, H, W).
            data_samples: Labels of the B images.

        Returns:
            ``loss_cls`` and ``loss_distill``, and the accuracy if the head
            is to calculate it.

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
        if self._teacher is None:
            # Past nn.Module, which would make it a part of the model.
            teacher = self._build_teacher().to(inputs)
            object.__setattr__(self, '_teacher', teacher)
        # Not the raw output, which has a form of its own in some heads.
        samples = self._teacher.predict(self.renormalise(inputs))
        return torch.stack([sample.pred_score for sample in samples])

    def _build_teacher(self) -> nn.Module:
        config = self.teacher_config
        if config is None:
            raise ValueError(
                'teacher_config=None builds a model that only predicts; '
                'training needs the config of a teacher'
            )
        teacher = self._build_of_teacher(config.model)
        _load_weights(teacher, config.load_from)
        return teacher.eval().requires_grad_(False)

    def _build_of_teacher(self, config: dict) -> nn.Module:
        scope = self.teacher_config.default_scope
        with DefaultScope.overwrite_default_scope(scope):
            # The builder changes the dict that it is given.
            return MMPRETRAIN_MODELS.build(deepcopy(config))

    def _apply(self, fn, *args, **kwargs) -> nn.Module:
        if self._teacher is not None:
            self._teacher._apply(fn)
        return super()._apply(fn, *args, **kwargs)

    def __getstate__(self) -> dict:
        """Leave the teacher out of copies and pickles; they load their own.

        Otherwise a moving average would hold it twice or, if it were shared,
        take it along to another device.
        """
        return {**self.__dict__, '_teacher': None}


class _Renormalise(nn.Module):
    """From what one preprocessor makes of pixels to what another would.

    Args:
        source: The preprocessor of the inputs.
        target: The other one.

    Raises:
        ValueError: One of them is no ``ClsDataPreprocessor``.

    Shape:
        - Input and output: (B, 3, H, W).
    """

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
        for name, value in (
            ('scale', stds[0] / stds[1]),
            ('shift', (means[0] - means[1]) / stds[1]),
        ):
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.flip and x.size(1) == 3:
            x = x.flip(1)
        return x * self.scale + self.shift


def _complete(
    config: str | Path | Config | dict, ckpt: str | Path | None
) -> ConfigDict:
    """Return a config that has all that a teacher needs.

    Returns:
        Dict with ``model``, ``load_from`` (path or URL of its weights),
        ``data_preprocessor`` (None if unknown) and ``default_scope``.
    """
    if isinstance(config, str | Path):
        config = _read(str(config))
    if 'model' not in config:
        config = dict(model=config)
    model = config['model']
    head = model.get('head')
    if not isinstance(head, dict) or 'num_classes' not in head:
        raise ValueError(
            'teacher_config must be that of a classifier whose head tells '
            f'num_classes, got the head {head!r} in {model.get("type")!r}'
        )
    ckpt = ckpt or config.get('load_from') or _own_weights(model)
    if ckpt is None:
        raise ValueError(
            'teacher_ckpt=None needs a teacher_config that names its weights '
            '(load_from, or a pretrained model): a teacher without is random'
        )
    return ConfigDict(
        model=model,
        load_from=str(ckpt),
        data_preprocessor=model.get('data_preprocessor')
        or config.get('data_preprocessor'),
        default_scope=config.get('default_scope') or 'mmpretrain',
    )


def _read(config: str) -> Config:
    """Read a config file, or one of an installed library (with ``::``)."""
    try:
        if '::' in config:
            return Config.fromstring(f'_base_ = {config!r}', '.py')
        return Config.fromfile(config)
    except (OSError, ValueError, AssertionError) as error:
        raise ValueError(
            f'teacher_config={config!r} cannot be read: {error}; use '
            'teacher_config=None for a model that only predicts'
        ) from error


def _own_weights(model: dict) -> str | None:
    """Return the checkpoint that a model dict itself names for the whole."""
    init_cfg = model.get('init_cfg') or []
    init_cfgs = [init_cfg] if isinstance(init_cfg, dict) else init_cfg
    named = [cfg['checkpoint'] for cfg in init_cfgs if 'checkpoint' in cfg]
    return model.get('pretrained') or (named[0] if named else None)


def _load_weights(network: nn.Module, ckpt: str) -> None:
    """Fill a network with the weights of a file or URL; all must fit."""
    try:
        with weights_only():
            load_checkpoint(
                network,
                ckpt,
                map_location='cpu',
                strict=True,
                logger='current',
            )
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise ValueError(
            f'teacher_ckpt={ckpt!r} cannot be loaded into the teacher that '
            f'teacher_config describes: {error}'
        ) from error
