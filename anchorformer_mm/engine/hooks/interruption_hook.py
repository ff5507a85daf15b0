"""End a run that was asked to end, with a checkpoint."""

import torch
from mmengine.dist import all_reduce, barrier, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from anchorformer_mm.engine.hooks.safe_checkpoint_hook import (
    SafeCheckpointHook,
)
from anchorformer_mm.engine.resuming.interruption import (
    Interrupted,
    requested_signal,
)
from anchorformer_mm.engine.resuming.random_states import (
    get_random_states,
    set_random_states,
)
from anchorformer_mm.registry import HOOKS


@HOOKS.register_module()
class InterruptionHook(Hook):
    """After a signal, save ``interrupted.pth`` and leave.

    That is after the training step or the batch of evaluation under way. An
    evaluation is abandoned, and done by the resumed run. Processes that train
    together leave after the same step, and finish an evaluation before.
    """

    # Everything that belongs to the step has been done.
    priority = 'LOWEST'

    def after_train_iter(self, runner: Runner, **kwargs) -> None:
        """Leave in the middle of an epoch.

        Raises:
            Interrupted: A signal was received, here or in another process.
        """
        number = requested_signal()
        if get_world_size() > 1:
            shared = torch.tensor(number, device=_device_of(runner))
            all_reduce(shared, 'max')
            number = int(shared)
        if number:
            meta = dict(epoch=runner.epoch, iter=runner.iter + 1)
            saved = _save(runner, meta)
            # A process that leaves early would end the one that still writes.
            barrier()
            raise Interrupted(number, saved)

    def before_val(self, runner: Runner) -> None:
        """Remember the random states that the checkpoint must have."""
        self._states = get_random_states()

    def after_val_iter(self, runner: Runner, **kwargs) -> None:
        """Leave in the middle of an evaluation that is part of a training.

        Raises:
            Interrupted: A signal was received.
        """
        number = requested_signal()
        if not number or get_world_size() > 1:
            return
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                # Evaluated are the averages; trained are the others.
                hook._swap_ema_parameters()
        set_random_states(self._states)
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        meta['run_state'] = dict(evaluation_due=True)
        raise Interrupted(number, _save(runner, meta))


def _save(runner: Runner, meta: dict) -> str | None:
    for hook in runner.hooks:
        if isinstance(hook, SafeCheckpointHook):
            return hook.save_interrupted(runner, meta)
    return None


def _device_of(runner: Runner) -> torch.device:
    return next(runner.model.parameters()).device
