"""A cosine that begins at an iteration and ends at an epoch."""

from mmengine.optim import CosineAnnealingLR, OptimWrapper
from torch.optim import Optimizer

from anchorformer_mm.registry import PARAM_SCHEDULERS

# What mmengine's schedulers take for "never".
NEVER = int(1e9)


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
        end: int = NEVER,
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
