"""mmengine's runner with checkpoints that are whole and complete."""

import os
from pathlib import Path

import torch
from mmengine.dist import (
    all_gather_object,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from anchorformer_mm.engine.plain_norm_runner import PlainNormRunner
from anchorformer_mm.engine.resuming.data_order import number_batches
from anchorformer_mm.engine.resuming.random_states import get_random_states
from anchorformer_mm.engine.resuming.rank_buffers import get_rank_buffers
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import replacing


class ResumableRunner(PlainNormRunner):
    """Trains such that going on from any checkpoint repeats the unbroken run.

    Beyond mmengine's, ``meta['run_state']`` of a checkpoint has the random
    states and own buffers of all processes, gradients that wait for a step,
    whether the evaluation that follows is still due, and how many batches of
    the epoch under way are done. A checkpoint on a local disk gets its name
    once it is whole.
    :class:`anchorformer_mm.engine.hooks.ResumeHook` takes the state up again.

    Attributes:
        run_state: Of the checkpoint that was resumed from; None for a fresh
            run and for a checkpoint that has none.
        epoch_start: Iteration with which the epoch under way began.
    """

    run_state: dict | None = None
    epoch_start: int = 0

    def build_dataloader(
        self,
        dataloader: DataLoader | dict,
        seed: int | None = None,
        diff_rank_seed: bool = False,
    ) -> DataLoader:
        """Build a loader whose batches follow from the seed."""
        built = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        number_batches(built, self.seed, get_rank())
        return built

    def call_hook(self, fn_name: str, **kwargs) -> None:
        """Call hooks; look at a checkpoint before they take weights of it.

        Raises:
            UsageError: The checkpoint to resume from is of another model.
        """
        if fn_name == 'after_load_checkpoint' and self._resume:
            self._refuse_another_model(kwargs['checkpoint']['state_dict'])
        super().call_hook(fn_name, **kwargs)

    def _refuse_another_model(self, saved: dict[str, torch.Tensor]) -> None:
        # mmengine logs what does not fit, and goes on with random weights.
        model = self.model
        if is_model_wrapper(model):
            model = model.module
        problems = [
            f'{name} is {tuple(saved[name].shape)} in the checkpoint and '
            f'{tuple(value.shape)} here'
            for name, value in model.state_dict().items()
            if name in saved and saved[name].shape != value.shape
        ]
        problems += [
            f'{name} is not in the checkpoint'
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name not in saved
        ]
        if problems:
            raise UsageError(
                f'{self._load_from} is of another model: {problems[0]}'
                + (f', and {len(problems) - 1} more' if problems[1:] else '')
            )

    def load_checkpoint(self, *args, **kwargs) -> dict:
        """Load weights; of a resumed run, take in the state as well."""
        checkpoint = super().load_checkpoint(*args, **kwargs)
        # As mmcv 1.x wrote it. mmengine would run it, as it does configs.
        checkpoint.get('meta', {}).pop('config', None)
        if self._resume:
            self.run_state = checkpoint['meta'].get('run_state')
        return checkpoint

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        *args,
        meta: dict | None = None,
        **kwargs,
    ) -> None:
        """Write a checkpoint that is whole or not there.

        Args:
            out_dir: Its folder.
            filename: Its name.
            *args: As for :meth:`mmengine.runner.Runner.save_checkpoint`.
            meta: ``epoch`` and ``iter`` that are done, and entries of
                ``run_state`` that are not to be derived from them.
            **kwargs: As for :meth:`mmengine.runner.Runner.save_checkpoint`.

        Raises:
            UsageError: The file cannot be written.
        """
        meta = dict(meta or {})
        meta['run_state'] = self._state_at(meta) | meta.get('run_state', {})
        if kwargs.get('save_optimizer', True):
            meta['run_state']['gradients'] = self._gathered_gradients()
        hub = self.message_hub
        meta['run_state']['counters'] = dict(
            epoch=hub.get_info('epoch'), iter=hub.get_info('iter')
        )
        # Of every process, so that every process has to be here.
        meta['run_state']['random'] = all_gather_object(get_random_states())
        meta['run_state']['buffers'] = get_rank_buffers(self)
        if not is_main_process():
            return
        if '://' in str(out_dir):
            # A store of objects, which it writes as a whole.
            super().save_checkpoint(
                out_dir, filename, *args, meta=meta, **kwargs
            )
            return
        path = Path(out_dir) / filename
        try:
            with replacing(path) as unfinished:
                super().save_checkpoint(
                    out_dir, unfinished.name, *args, meta=meta, **kwargs
                )
                _flush_to_disk(unfinished)
        except OSError as error:
            raise UsageError(f'cannot write {path}: {error}') from error

    def _gathered_gradients(self) -> dict[str, torch.Tensor]:
        """Return the gradients that wait for a step of the optimiser.

        Those of processes that train together differ, and are left out.
        """
        optim = self.optim_wrapper
        if (
            not isinstance(optim, OptimWrapper)
            or optim.should_update()
            or get_world_size() > 1
        ):
            return {}
        return {
            name: parameter.grad.cpu()
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }

    def _state_at(self, meta: dict) -> dict:
        """Tell evaluation and epoch from what a checkpoint calls done.

        mmengine saves before it counts an iteration or epoch as done, and
        again, with the numbers as they are, after an evaluation.
        """
        epoch, iteration = meta.get('epoch'), meta.get('iter')
        if (epoch, iteration) == (self.epoch, self.iter):
            return dict(evaluation_due=False, batches_done=0)
        if epoch == self.epoch and isinstance(
            self.train_loop, EpochBasedTrainLoop
        ):
            done = iteration - self.epoch_start
            return dict(evaluation_due=False, batches_done=done)
        return dict(evaluation_due=True, batches_done=0)


def _flush_to_disk(path: Path) -> None:
    """Let the content be on the disk before its name is."""
    with path.open('rb+') as file:
        os.fsync(file.fileno())
