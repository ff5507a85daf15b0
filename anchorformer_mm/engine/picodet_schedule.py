"""PicoDet's schedule: averaged weights, their cycles, the learning rate."""

import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel
from mmengine.optim import CosineAnnealingLR, OptimWrapper
from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from anchorformer_mm.models.argument_checks import check_positive, is_number
from anchorformer_mm.registry import HOOKS, MODELS, PARAM_SCHEDULERS


@MODELS.register_module()
class ThresholdEMA(BaseAveragedModel):
    r"""Bias-corrected average of weights and running statistics.

    The rule is PaddleDetection's (``ppdet/optimizer/ema.py``, type
    ``threshold``): a shadow of the whole state starts at zeros and takes in
    the weights :math:`x_t` after step :math:`t = 0, 1, \ldots`

    .. math::
        d_t = \min\left(1 - m, \frac{1 + t}{10 + t}\right), \quad
        s_{t+1} = d_t s_t + (1 - d_t) x_t, \quad
        \bar x_{t+1} = \frac{s_{t+1}}{1 - d_t^{t+1}}

    and :math:`\bar x` is what is evaluated and saved. As the corrections are
    known beforehand, :math:`\bar x` is averaged directly here, and the shadow
    is never stored: ``module`` holds the averaged weights at any time, as
    :class:`mmengine.hooks.EMAHook` expects. Before the first step they are
    the weights as they are.

    The correction would be exact for a constant decay. Under a growing one,
    weights come out too large: by 1.5 % after two steps, 6e-4 after 20, and
    1.2e-4 from some thousand on until the threshold is reached (step 44,990).

    Integers, such as the number of batches that a norm has seen, are copied.

    Args:
        model: Model to average.
        momentum: :math:`m`, one minus the largest decay, in 0..1.
        interval: Iterations between two steps of the average.
        device: Where to keep the average; None for the model's own devices.

    Raises:
        ValueError: ``momentum`` or ``interval`` is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.0002,
        interval: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        if not is_number(momentum) or not 0 < momentum < 1:
            raise ValueError(
                f'momentum must lie between 0 and 1, got {momentum!r}'
            )
        check_positive(interval=interval)
        super().__init__(model, interval, device, update_buffers=True)
        self.momentum = momentum
        # A tensor of several names, as in heads that share convolutions, must
        # take each step once.
        state = self.module.state_dict(keep_vars=True)
        first_names = {id(v): k for k, v in reversed(state.items())}
        self.avg_parameters = {k: state[k].data for k in first_names.values()}

    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of ``model``."""
        super().update_parameters(model)
        state = model.state_dict()
        for name, value in self.avg_parameters.items():
            if not value.is_floating_point():
                value.copy_(state[name])

    def avg_func(
        self, averaged_param: Tensor, source_param: Tensor, steps: int
    ) -> None:
        """Average in place; the first step, a copy, is mmengine's."""
        t = int(steps) // self.interval
        decay = self._decay(t)
        correction = 1 - decay ** (t + 1)
        previous = 1 - self._decay(t - 1) ** t
        averaged_param.mul_(decay * previous / correction)
        averaged_param.add_(source_param, alpha=(1 - decay) / correction)

    def _decay(self, t: int) -> float:
        return min(1 - self.momentum, (1 + t) / (10 + t))


@HOOKS.register_module()
class CycleEMAHook(EMAHook):
    """mmengine's ``EMAHook`` with an average over the current cycle alone.

    Published PicoDet v1 models average their last cycle of 40 epochs, or what
    there is of it. The average starts anew when a cycle's next epoch begins,
    thus after the cycle's last validation and checkpoint. Weights in training
    never see the average, and until the first step of a cycle they are the
    average. Which cycle it is follows from the epoch, so resuming needs
    nothing that the checkpoint does not have.

    Args:
        cycle_epochs: Epochs in a cycle.
        ema_type: An averaged model of mmengine's registry.
        **kwargs: As for :class:`mmengine.hooks.EMAHook`.

    Raises:
        ValueError: ``cycle_epochs`` is not a positive integer; in training,
            the loop counts iterations.
    """

    def __init__(
        self,
        cycle_epochs: int = 40,
        ema_type: str = 'anchorformer_mm.ThresholdEMA',
        **kwargs,
    ) -> None:
        check_positive(cycle_epochs=cycle_epochs)
        super().__init__(ema_type=ema_type, **kwargs)
        self.cycle_epochs = cycle_epochs

    def before_train(self, runner: Runner) -> None:
        """Raise a ValueError when the training loop counts iterations."""
        super().before_train(runner)
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(
                'cycle_epochs needs an EpochBasedTrainLoop, got '
                f'{type(runner.train_loop).__name__}: use EMAHook with '
                "ema_type='anchorformer_mm.ThresholdEMA'"
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Start the average anew at the first epoch of a cycle."""
        batches = runner.train_dataloader.batch_sampler
        if getattr(batches, 'skip', 0):
            # Resumed in the middle of an epoch, which started it already.
            return
        if runner.epoch > 0 and runner.epoch % self.cycle_epochs == 0:
            # An averaged model takes its first step as a copy.
            self.ema_model.steps.zero_()
            self.ema_model.module.load_state_dict(self.src_model.state_dict())


@PARAM_SCHEDULERS.register_module()
class CosineAfterWarmupLR(CosineAnnealingLR):
    r"""Cosine annealing by iteration, from the end of a warm-up on.

    With :math:`w` iterations of warm-up and :math:`T` iterations in all, the
    rate at iteration :math:`i \ge w` is

    .. math:: \frac{\eta}{2}\left(1 + \cos\frac{\pi (i - w)}{T - w}\right)

    where mmengine's cosine, which begins and ends in the same unit, runs from
    0 to :math:`T`. The warm-up is a ``LinearLR`` beside it with
    ``end=warmup_iters + 1``: it is at its full height in its last step.

    In a config, ``convert_to_iter_based=True`` lets ``T_max``, ``begin`` and
    ``end`` be epochs; ``warmup_iters`` always counts iterations (training
    steps, whatever ``accumulative_counts`` is). Training may stop before
    ``T_max``: the rest of the cosine is then left out.

    Args:
        optimizer: Optimiser or its wrapper.
        warmup_iters: Iterations from ``begin`` to the start of the cosine.
        T_max: Iterations from ``begin`` to the end of the cosine; None for
            those to ``end``.
        begin: First iteration of the warm-up.
        end: Iteration at which the rate stops to change.
        by_epoch: False, as the schedule counts iterations.
        **kwargs: As for :class:`mmengine.optim.CosineAnnealingLR`.

    Raises:
        ValueError: The schedule counts epochs, or ends within the warm-up.
    """

    def __init__(
        self,
        optimizer: Optimizer | OptimWrapper,
        warmup_iters: int,
        T_max: int | None = None,
        begin: int = 0,
        end: int = INF,
        by_epoch: bool = True,
        **kwargs,
    ) -> None:
        if by_epoch:
            raise ValueError(
                f'by_epoch must be False, got {by_epoch!r}: set '
                'convert_to_iter_based=True to count in epochs'
            )
        T_max = T_max or end - begin
        iters = min(T_max, end - begin)
        if not 0 <= warmup_iters < iters:
            raise ValueError(
                f'warmup_iters must lie in 0..{iters - 1}, as the schedule '
                f'has {iters} iterations, got {warmup_iters!r}'
            )
        super().__init__(
            optimizer,
            T_max=T_max - warmup_iters,
            begin=begin + warmup_iters,
            end=end,
            by_epoch=False,
            **kwargs,
        )
