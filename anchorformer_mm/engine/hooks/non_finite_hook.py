"""No step with a loss or a gradient that is not a number."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from anchorformer_mm.registry import HOOKS
from anchorformer_mm.utils.errors import UsageError

ACTIONS = ('stop', 'skip')
# A model whose weights are not finite would skip for ever.
MAX_SKIPPED_IN_A_ROW = 10


class NonFiniteError(UsageError):
    """A loss or gradient is infinite or not a number."""


class _Forward(NamedTuple):
    """What a forward pass of the step under way gave."""

    iteration: int
    terms: Mapping[str, Tensor]
    paths: list[str]


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Keep infinite and undefined numbers out of the weights.

    Looked at are, before each step of the optimiser, the losses of all the
    batches that it gathers, and the gradients; to stop before it is gathered,
    a loss of several batches at once. A checkpoint is not written if weights
    are not finite all the same, as after a step with an infinite learning
    rate. In mixed precision with a
    dynamic loss scale above 1, gradients overflow now and then as a matter of
    course, whereupon torch's scaler leaves out the step and lowers the scale;
    these pass. Those with a scale of 1 or less, or a fixed one, do not. A
    loss must always be finite: it is not scaled.

    Args:
        action: ``'stop'`` ends the run with an error. ``'skip'`` leaves out
            the step, so that weights, the optimiser's state and the norms'
            running statistics stay as they were, and logs how many were left
            out; after ten in a row it stops all the same.

    Raises:
        ValueError: ``action`` is something else.
    """

    def __init__(self, action: str = 'stop') -> None:
        if action not in ACTIONS:
            raise ValueError(
                f'action must be one of {ACTIONS}, got {action!r}'
            )
        self.action = action
        self.skipped = 0
        self._in_a_row = 0
        self._forwards: list[_Forward] = []
        self._buffers: list[tuple[Tensor, Tensor]] | None = None
        self._paths: list[str] = []

    def before_train(self, runner: Runner) -> None:
        """Stand between the model and its optimiser."""
        model, optim = runner.model, runner.optim_wrapper
        if not isinstance(optim, OptimWrapper):
            runner.logger.warning(
                'NonFiniteHook does not look at losses and gradients: '
                f'{type(optim).__name__} has several optimisers'
            )
            return
        if is_model_wrapper(model):
            model = model.module
        parse_losses, step = model.parse_losses, optim.step

        def keep_losses(losses: dict) -> tuple[Tensor, dict]:
            loss, terms = parse_losses(losses)
            self._forwards.append(
                _Forward(runner.iter, dict(terms), self._paths)
            )
            if self.action == 'stop' and optim._accumulative_counts > 1:
                # Its gradients would be in the checkpoints before the step.
                problem = self._find_problem(optim, gradients=False)
                if problem is not None:
                    self._leave_out(runner, problem)
            return loss, terms

        def careful_step(**kwargs) -> None:
            problem = self._find_problem(optim)
            if problem is None:
                self._in_a_row = 0
                step(**kwargs)
            else:
                self._leave_out(runner, problem)
            self._forwards.clear()
            self._buffers = None

        model.parse_losses = keep_losses
        optim.step = careful_step

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Remember the images and, to be able to skip, the statistics."""
        self._paths = _image_paths(data_batch)
        if self.action == 'skip' and self._buffers is None:
            self._buffers = [(b, b.clone()) for b in runner.model.buffers()]

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse to save weights that are of no use.

        Raises:
            NonFiniteError: A parameter is infinite or not a number.
        """
        bad = [
            name
            for name, parameter in runner.model.named_parameters()
            if not torch.isfinite(parameter.detach()).all()
        ]
        if bad:
            names = ', '.join(bad[:3]) + (', ...' if len(bad) > 3 else '')
            raise NonFiniteError(
                f'after iteration {checkpoint["meta"]["iter"]} {len(bad)} '
                f'weights are not finite ({names}), though losses and '
                'gradients were: look at the learning rate. No checkpoint is '
                'written of them'
            )

    def _find_problem(
        self, optim: OptimWrapper, gradients: bool = True
    ) -> str | None:
        """Say what is not finite, in any process; None if all is."""
        check = [f.terms['loss'].detach().sum() for f in self._forwards]
        if gradients and not _overflow_is_normal(optim):
            check += [
                torch.linalg.vector_norm(p.grad.detach(), math.inf)
                for group in optim.param_groups
                for p in group['params']
                if p.grad is not None and p.grad.numel()
            ]
        if not check:
            return None
        first = check[0]
        values = torch.stack(
            [v.to(first.device, torch.float32) for v in check]
        )
        bad = (~values.isfinite()).any().float()
        all_reduce(bad, 'max')
        if not bad:
            return None
        for forward in self._forwards:
            terms = _not_finite(forward.terms.items())
            if terms:
                where = forward
                what = f'the loss is not finite ({terms})'
                break
        else:
            where = self._forwards[-1] if self._forwards else None
            what = 'the gradient of a finite loss is not finite'
            if where is not None:
                what += f' ({_all_terms(where.terms)})'
        if where is None:
            return what
        images = ', '.join(where.paths) or 'not named by their data set'
        return f'iteration {where.iteration + 1}: {what}; images: {images}'

    def _leave_out(self, runner: Runner, problem: str) -> None:
        self._in_a_row += 1
        if self.action == 'stop':
            raise NonFiniteError(
                f'{problem}. The weights are as before this step. To leave '
                'out such steps: --cfg-options '
                'default_hooks.non_finite.action=skip'
            )
        if self._in_a_row > MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                f'{problem}. {MAX_SKIPPED_IN_A_ROW} steps before it were left '
                'out for the same reason'
            )
        self.skipped += 1
        for buffer, before in self._buffers or ():
            buffer.copy_(before)
        runner.logger.warning(
            f'{problem}. This step is left out; left out so far: '
            f'{self.skipped}'
        )


def _overflow_is_normal(optim: OptimWrapper) -> bool:
    """Whether the scaler may still lower its scale until gradients fit."""
    scaler = getattr(optim, 'loss_scaler', None)
    if scaler is None or not scaler.is_enabled():
        return False
    fixed = getattr(optim, '_scale_update_param', None) is not None
    return not fixed and scaler.get_scale() > 1


def _not_finite(terms: Iterable[tuple[str, Tensor]]) -> str:
    values = ((name, float(value.detach().sum())) for name, value in terms)
    return ', '.join(
        f'{name} = {value}'
        for name, value in values
        if not math.isfinite(value)
    )


def _all_terms(terms: Mapping[str, Tensor]) -> str:
    return ', '.join(
        f'{name} = {float(value.detach().sum()):.4g}'
        for name, value in terms.items()
    )


def _image_paths(data_batch: Any) -> list[str]:
    """Return the paths that the samples of a batch carry."""
    if not isinstance(data_batch, Mapping):
        return []
    samples = data_batch.get('data_samples') or []
    metas = [getattr(sample, 'metainfo', {}) for sample in samples]
    return [str(meta['img_path']) for meta in metas if 'img_path' in meta]
