"""mmengine's runner for strategies, whose checkpoints tell their epoch."""

from mmengine._strategy import DeepSpeedStrategy, FSDPStrategy
from mmengine.fileio import join_path
from mmengine.hooks import EMAHook
from mmengine.runner import FlexibleRunner

from anchorformer_mm.engine.hooks import ChannelsLastHook
from anchorformer_mm.registry import RUNNERS
from anchorformer_mm.utils.errors import UsageError

WHOLE_MODEL = (EMAHook, ChannelsLastHook)


@RUNNERS.register_module()
class StrategyRunner(FlexibleRunner):
    """mmengine's ``FlexibleRunner`` that resumes with the right epoch.

    mmengine's counts one epoch too many in a checkpoint that is written
    again after an evaluation, as every one is that is the best so far: a run
    that goes on from it leaves out an epoch.

    Args:
        **kwargs: As for :class:`mmengine.runner.FlexibleRunner`.

    Raises:
        UsageError: The strategy makes shards, and there is a hook that would
            average, save or lay them out as if they were the weights.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        if isinstance(self.strategy, (FSDPStrategy, DeepSpeedStrategy)):
            refused = [h for h in self.hooks if isinstance(h, WHOLE_MODEL)]
            if refused:
                raise UsageError(
                    f'{type(refused[0]).__name__} works on whole models, '
                    f'which {type(self.strategy).__name__} has none of: take '
                    'it out of custom_hooks'
                )

    def call_hook(self, fn_name: str, **kwargs) -> None:
        """Call hooks; take the code out of a checkpoint that is loaded."""
        if fn_name == 'after_load_checkpoint':
            # As mmcv 1.x wrote it. mmengine would run it, as it does configs.
            kwargs['checkpoint'].get('meta', {}).pop('config', None)
        super().call_hook(fn_name, **kwargs)

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Have the strategy write a checkpoint.

        Args:
            out_dir: Its folder.
            filename: Its name.
            file_client_args: Must be None; see ``backend_args``.
            save_optimizer: Whether the optimiser's state is in it.
            save_param_scheduler: Whether the schedulers' is.
            meta: ``epoch`` and ``iter`` that are done.
            by_epoch: Whether an epoch, or else an iteration, is about to be
                counted as done; of use without ``meta``.
            backend_args: Of the file backend.

        Raises:
            ValueError: There are ``file_client_args``.
        """
        if file_client_args is not None:
            raise ValueError(
                'file_client_args must be None, use backend_args; got '
                f'{file_client_args!r}'
            )
        done = dict(epoch=self.epoch + by_epoch, iter=self.iter + 1 - by_epoch)
        meta = (
            done
            | (meta or {})
            | dict(
                cfg=self.cfg.pretty_text, experiment_name=self.experiment_name
            )
        )
        metainfo = getattr(self.train_dataloader.dataset, 'metainfo', None)
        if metainfo is not None:
            meta['dataset_meta'] = metainfo
        self.strategy.save_checkpoint(
            str(join_path(out_dir, filename, backend_args=backend_args)),
            save_optimizer=save_optimizer,
            save_param_scheduler=save_param_scheduler,
            extra_ckpt=dict(
                meta=meta, message_hub=self.message_hub.state_dict()
            ),
            callback=lambda checkpoint: self.call_hook(
                'before_save_checkpoint', checkpoint=checkpoint
            ),
        )
