"""The base of the backbones that are a stem and stages."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from anchorformer_mm.models.argument_checks import check_within, rising


def make_divisible(value: float, divisor: int) -> int:
    """Round to the nearest multiple, never below 90 % of ``value``."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def run_block(block: nn.Module, x: Tensor, *args, with_cp: bool) -> Tensor:
    """Return ``block(x, *args)``; if ``with_cp``, keep no activations of it.

    The backward pass computes them anew, while batch norms leave their
    statistics alone.
    """
    trains = x.requires_grad or any(
        p.requires_grad for p in block.parameters()
    )
    if not (with_cp and trains and torch.is_grad_enabled()):
        return block(x, *args)
    contexts = partial(_recomputing, block)
    return checkpoint(
        block, x, *args, use_reentrant=False, context_fn=contexts
    )


def _recomputing(block: nn.Module) -> tuple[AbstractContextManager, ...]:
    """Contexts of the first run and of the second."""

    @contextmanager
    def statistics_kept() -> Iterator[None]:
        norms = [m for m in block.modules() if isinstance(m, _BatchNorm)]
        states = [(m.momentum, m.num_batches_tracked) for m in norms]
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        try:
            yield
        finally:
            for norm, state in zip(norms, states, strict=True):
                norm.momentum, norm.num_batches_tracked = state

    return nullcontext(), statistics_kept()


class StagedBackbone(BaseModule):
    """A stem and stages, which are those of PicoDet unless overridden.

    A subclass hands both to :meth:`assemble` in its constructor, and says in
    ``out_strides`` how many stages there are and what they do.

    Args:
        out_indices: Stages to return, counted from 0, in rising order; all by
            default. Those after the last one do not run and do not train.
        frozen_stages: First stages that do not train, together with the stem;
            -1 or 0: all of the network trains.
        norm_eval: Whether batch statistics stay fixed in training.
        with_cp: Recompute the stages in the backward pass to save memory.
        norm_cfg: Normalisation; batch norm by default.
        act_cfg: Activation; the hard swish by default.
        init_cfg: Initialisation; by default Kaiming normal over fan-in.

    Shape:
        - Input: (B, in_channels, H, W), any H and W.
        - Output: tuple of (B, C_i, ceil(H / s_i), ceil(W / s_i)) with
          s = ``out_strides``, for i in ``out_indices``.
    """

    out_strides = (8, 16, 32)

    def __init__(
        self,
        *,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        kaiming = dict(type='Kaiming', layer='Conv2d', mode='fan_in')
        kaiming |= dict(nonlinearity='relu')
        ones = dict(type='Constant', layer='_BatchNorm', val=1)
        super().__init__(init_cfg or [kaiming, ones])
        count = len(self.out_strides)
        if out_indices is None:
            out_indices = range(count)
        self.out_indices = rising('out_indices', out_indices, 0, count - 1)
        check_within(-1, count, frozen_stages=frozen_stages)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.norm_cfg = norm_cfg or dict(type='BN')
        self.act_cfg = act_cfg or dict(type='HSwish')

    def assemble(self, stem: nn.Module, stages: Iterable[nn.Module]) -> None:
        """Take the parts, and freeze those that do not train.

        The parts of mmengine's ``ModuleList`` are asked for their own
        initialisation, those of other iterables are not.
        """
        self.stem = stem
        is_list = isinstance(stages, nn.ModuleList)
        self.stages = stages if is_list else nn.ModuleList(stages)
        self._freeze_stages()
        # A weight that trains and gets no gradient stops distributed training.
        self.stages[self.out_indices[-1] + 1 :].requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        outs = []
        for i, stage in enumerate(self.stages):
            x = run_block(stage, x, with_cp=self.with_cp)
            if i in self.out_indices:
                outs.append(x)
            if i == self.out_indices[-1]:
                break
        return tuple(outs)

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 1:
            return
        for module in (self.stem, *self.stages[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> 'StagedBackbone':
        """Set the mode; frozen stages and fixed norms stay in eval."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
