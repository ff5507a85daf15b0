"""Averages of weights that start anew every so many epochs."""

from mmengine.hooks import EMAHook
from mmengine.runner import EpochBasedTrainLoop, Runner

from anchorformer_mm.registry import HOOKS


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
        ValueError: ``cycle_epochs`` is not a positive integer.
    """

    def __init__(
        self,
        cycle_epochs: int = 40,
        ema_type: str = 'anchorformer_mm.ThresholdEMA',
        **kwargs,
    ) -> None:
        if not isinstance(cycle_epochs, int) or cycle_epochs < 1:
            raise ValueError(
                f'cycle_epochs must be a positive integer, got '
                f'{cycle_epochs!r}'
            )
        super().__init__(ema_type=ema_type, **kwargs)
        self.cycle_epochs = cycle_epochs

    def before_train(self, runner: Runner) -> None:
        """Refuse loops without epochs.

        Raises:
            ValueError: The training loop counts iterations.
        """
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
