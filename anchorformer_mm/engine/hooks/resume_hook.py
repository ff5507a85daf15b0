"""Take up a run where its checkpoint left it."""

from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from anchorformer_mm.engine.resuming.data_order import (
    NumberedBatches,
    ResumedIterator,
)
from anchorformer_mm.engine.resuming.random_states import set_random_states
from anchorformer_mm.engine.resuming.rank_buffers import set_rank_buffers
from anchorformer_mm.registry import HOOKS
from anchorformer_mm.utils.errors import UsageError


@HOOKS.register_module()
class ResumeHook(Hook):
    """Continue data, random numbers and evaluations of a resumed run.

    Works on a :class:`anchorformer_mm.engine.resuming.ResumableRunner`, of
    which the command line makes use. With it, a resumed run ends with the
    same bits as one that was never broken.
    """

    # The last before the first step.
    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Go to where the run was; evaluate if it was about to."""
        loop, state = runner.train_loop, runner.run_state
        batches = loop.dataloader.batch_sampler
        if isinstance(batches, NumberedBatches):
            batches.continues = True
            if isinstance(loop, IterBasedTrainLoop) and runner.iter:
                loop.dataloader_iterator = ResumedIterator(
                    loop.dataloader, runner.iter
                )
            elif isinstance(loop, EpochBasedTrainLoop) and state is not None:
                batches.skip = state['batches_done']
                _check_length(batches)
                _count_on(loop, batches)
        if state is None:
            if runner.iter:
                runner.logger.warning(
                    'The checkpoint has no random states, as it was saved by '
                    'something else: the run goes on, but it does not repeat '
                    'the unbroken one'
                )
            return
        random = state['random']
        if get_rank() < len(random):
            set_random_states(random[get_rank()])
        set_rank_buffers(runner, state.get('buffers', []))
        for name, parameter in runner.model.named_parameters():
            if name in state.get('gradients', {}):
                gradient = state['gradients'][name]
                parameter.grad = gradient.to(parameter).clone()
        evaluates = state['evaluation_due'] and _evaluates_here(runner)
        if evaluates or state['batches_done']:
            # mmengine counts on in them when the next step begins.
            runner.message_hub.update_info_dict(state['counters'])
        if evaluates:
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        """Number the batches of the epoch by iteration."""
        batches = runner.train_dataloader.batch_sampler
        runner.epoch_start = runner.iter
        if isinstance(batches, NumberedBatches):
            batches.start = runner.iter
            if isinstance(runner.train_loop, EpochBasedTrainLoop):
                runner.epoch_start -= batches.skip


def _check_length(batches: NumberedBatches) -> None:
    """Refuse to go on in an epoch that is shorter than what was done of it.

    Raises:
        UsageError: Batch size, data or number of processes are others.
    """
    if batches.skip > len(batches):
        raise UsageError(
            f'the checkpoint is of {batches.skip} batches into an epoch, '
            f'which now has {len(batches)}: go on with the data, '
            'train_dataloader.batch_size and processes that it had'
        )


def _count_on(loop: EpochBasedTrainLoop, batches: NumberedBatches) -> None:
    """Let hooks see where in its epoch a batch stands.

    mmengine counts the batches of an epoch as they are loaded.
    """
    passed_over, epoch, run_iter = batches.skip, loop.epoch, loop.run_iter

    def run_counted(index: int, data_batch: Any) -> None:
        resumed = loop.epoch == epoch
        run_iter(index + passed_over if resumed else index, data_batch)

    if passed_over:
        loop.run_iter = run_counted


def _evaluates_here(runner: Runner) -> bool:
    """Whether mmengine's loops evaluate once this much is done."""
    loop = runner.train_loop
    if runner.val_loop is None:
        return False
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    done = runner.epoch if by_epoch else runner.iter
    end = runner.max_epochs if by_epoch else runner.max_iters
    loop._decide_current_val_interval()
    return done >= loop.val_begin and (
        done % loop.val_interval == 0 or done == end
    )
