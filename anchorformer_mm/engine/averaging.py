"""The moving average of weights that PicoDet is evaluated with."""

import torch
from mmengine.model import BaseAveragedModel
from torch import Tensor, nn

from anchorformer_mm.registry import MODELS


@MODELS.register_module()
class ThresholdEMA(BaseAveragedModel):
    r"""Bias-corrected average of weights and running statistics.

    The law is PaddleDetection's (``ppdet/optimizer/ema.py``, type
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
        if not 0 < momentum < 1:
            raise ValueError(
                f'momentum must lie between 0 and 1, got {momentum!r}'
            )
        if interval < 1:
            raise ValueError(f'interval must be at least 1, got {interval!r}')
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
