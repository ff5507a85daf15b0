"""Hooks that mmengine does not have."""

import math
import os
import signal
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmengine.dist import (
    all_reduce,
    barrier,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.hooks import CheckpointHook, EMAHook, Hook, LoggerHook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.nn.parallel import DistributedDataParallel

from anchorformer_mm.analysis.anchor_state import (
    anchor_figures,
    anchor_layers,
    are_uniform,
    in_words,
    tell_tokens_apart,
    watch_weights,
)
from anchorformer_mm.engine.resume import (
    INTERRUPTED,
    LAST_CHECKPOINT,
    get_random_states,
    requested_signal,
    set_random_states,
)
from anchorformer_mm.registry import HOOKS
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.text import listing


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Lay the model's weights out as ``torch.channels_last``.

    Convolutions pass the layout on to their outputs; results are the same up
    to rounding, and checkpoints load either way. Depthwise networks gain most.
    """

    def before_run(self, runner: Runner) -> None:
        """Before training, validation and test alike."""
        wrapped = runner.model.to(memory_format=torch.channels_last)
        if isinstance(wrapped, DistributedDataParallel):
            # torch exchanges gradients in the layout that weights had when
            # they were wrapped.
            runner.model = runner.wrap_model(
                runner.cfg.get('model_wrapper_cfg'), wrapped.module
            )


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Raise UsageError at a loss, or before saving weights, not finite.

    The loss is what mmengine has logged of the step: the device is not waited
    for again. The step is done by then.
    """

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any, outputs: dict
    ) -> None:
        """Look at the terms of the loss."""
        scalars = runner.message_hub.log_scalars
        names = [n for n in outputs or {} if f'train/{n}' in scalars]
        terms = {n: scalars[f'train/{n}'].current() for n in names}
        if not all(map(math.isfinite, terms.values())):
            batch = data_batch if isinstance(data_batch, dict) else {}
            samples = batch.get('data_samples') or []
            paths = [str(getattr(s, 'img_path', '?')) for s in samples]
            told = ', '.join(f'{k} = {v:.4g}' for k, v in terms.items())
            raise UsageError(
                f'iteration {runner.iter + 1}: the loss is not finite ({told})'
                f'; images: {listing(paths, 16)}. Look at the learning rate; '
                'to go on from the last checkpoint: --resume'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Look at the weights."""
        weights = checkpoint['state_dict'].items()
        bad = [name for name, value in weights if not value.isfinite().all()]
        if bad:
            raise UsageError(
                f'weights are not finite after iteration {runner.iter}: '
                f'{listing(bad, 3)}; no checkpoint is written of them'
            )


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` that never has less than it had.

    Files beyond ``max_keep_ckpts`` are removed once the new one is whole, and
    nothing outside the folder is, whatever names a checkpoint brings along.

    Args:
        max_keep_ckpts: How many to keep; -1 for all.
        **kwargs: As for :class:`mmengine.hooks.CheckpointHook`.
    """

    def __init__(self, max_keep_ckpts: int = -1, **kwargs) -> None:
        super().__init__(**kwargs)
        self.keep = max_keep_ckpts

    def before_train(self, runner: Runner) -> None:
        """Take up the state of a resumed run, with names of this folder."""
        super().before_train(runner)
        hub = runner.message_hub
        self.last_ckpt = hub.get_info('last_ckpt')
        for key in [k for k in hub.runtime_info if k.startswith('best_ckpt')]:
            name = Path(str(hub.get_info(key))).name
            best = name.startswith('best_') and name.endswith('.pth')
            path = self.file_backend.join_path(self.out_dir, name)
            hub.update_info(key, path if best else None)
        if self.save_best is not None:
            self.best_ckpt_path = hub.get_info('best_ckpt')
            self.best_ckpt_path_dict = {
                key: hub.get_info(f'best_ckpt_{key}')
                for key in self.key_indicators
            }

    def after_train_epoch(self, runner: Runner) -> None:
        """Save after an epoch, then remove what is one too many."""
        super().after_train_epoch(runner)
        self._remove_outdated(runner.epoch + 1)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Save after an iteration, then remove what is one too many."""
        super().after_train_iter(runner, *args, **kwargs)
        self._remove_outdated(runner.iter + 1)

    def _remove_outdated(self, step: int) -> None:
        folder, name = Path(str(self.out_dir)), self.filename_tmpl
        new = os.path.basename(str(self.last_ckpt)) == name.format(step)
        # A store of objects is no folder: all are kept.
        if not new or not is_main_process() or not folder.is_dir():
            return
        (folder / INTERRUPTED).unlink(missing_ok=True)
        found = set(os.listdir(folder))
        # Higher numbers are of another training.
        saved = [n for n in map(name.format, range(1, step + 1)) if n in found]
        for old in saved[: -self.keep] if self.keep > 0 else []:
            (folder / old).unlink()


@HOOKS.register_module()
class ResumeHook(Hook):
    """Continue data, random numbers and evaluations of a resumed run.

    Works on :class:`anchorformer_mm.engine.resume.ResumableRunner`.
    """

    # The last before the first step.
    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Go to where the run was; evaluate if it was about to.

        Warns if nothing is left to do, or the rate changes no more.

        Raises:
            UsageError: The epoch is shorter than what was done of it.
        """
        loop, state = runner.train_loop, runner.run_state
        batches = loop.dataloader.batch_sampler
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        # A loop over iterations goes through those that are done, unless
        # mmengine's maintained fork can advance the sampler.
        if by_epoch or (
            hasattr(loop.dataloader_iterator, 'skip_iter')
            and hasattr(loop.dataloader.sampler, 'skip')
        ):
            batches.number = runner.iter
        done = runner.epoch if by_epoch else runner.iter
        end = runner.max_epochs if by_epoch else runner.max_iters
        unit = 'epochs' if by_epoch else 'iters'
        schedulers = runner.param_schedulers or []
        if isinstance(schedulers, dict):
            schedulers = sum(schedulers.values(), [])
        if runner.iter and done >= end:
            runner.logger.warning(
                f'nothing to do: {done} of {end} {unit} are done; for more '
                f'set train_cfg.max_{unit}'
            )
        # Their ends are those of the checkpoint, whatever the config has.
        elif (
            schedulers
            and max(
                s.end - (runner.epoch if s.by_epoch else runner.iter)
                for s in schedulers
            )
            == 0
        ):
            rates = sum(runner.optim_wrapper.get_lr().values(), [])
            runner.logger.warning(
                'the schedule of the resumed run has ended: the rate stays '
                f'at {max(rates):.3g}; for another one begin a training with '
                'load_from'
            )
        if state is None:
            if runner.iter:
                runner.logger.warning(
                    'the checkpoint has no random states, as it was saved by '
                    'something else: the run does not repeat the unbroken one'
                )
            return
        if get_rank() < len(state['random']):
            set_random_states(state['random'][get_rank()])
        if by_epoch:
            batches.skip = state['batches_done']
            if batches.skip > len(batches):
                raise UsageError(
                    f'the checkpoint is of {batches.skip} batches into an '
                    f'epoch, which now has {len(batches)}: go on with the '
                    'data, batch_size and processes that it had'
                )
        if (
            state['evaluation_due']
            and runner.val_loop is not None
            and done >= loop.val_begin
            and (done % loop.val_interval == 0 or done == end)
        ):
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        """Remember where the epoch began, for checkpoints in it."""
        skipped = runner.train_dataloader.batch_sampler.skip
        runner.epoch_start = runner.iter - skipped


@HOOKS.register_module()
class InterruptionHook(Hook):
    """After a signal, save ``interrupted.pth`` and leave.

    That is after the training step or the batch of evaluation under way. An
    evaluation is abandoned, and done by the resumed run. Processes that train
    together leave after the same step, and finish an evaluation before.
    """

    # Everything that belongs to the step has been done.
    priority = 'LOWEST'

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Leave in the middle of an epoch.

        Raises:
            SystemExit: A signal was received, here or in another process.
        """
        number = requested_signal()
        if get_world_size() > 1:
            device = next(runner.model.parameters()).device
            shared = torch.tensor(number, device=device)
            all_reduce(shared, 'max')
            number = int(shared)
        if number:
            _leave(runner, number, iter=runner.iter + 1)

    def before_val(self, runner: Runner) -> None:
        """Remember the random states that the checkpoint must have."""
        self._states = get_random_states()

    def after_val_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Leave in the middle of an evaluation that is part of a training.

        Raises:
            SystemExit: A signal was received.
        """
        number = requested_signal()
        if not number or get_world_size() > 1:
            return
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                # Evaluated are the averages; trained are the others.
                hook.after_val_epoch(runner)
        set_random_states(self._states)
        state = dict(evaluation_due=True)
        _leave(runner, number, iter=runner.iter, run_state=state)


def _leave(runner: Runner, number: int, **meta) -> None:
    """Exit with a checkpoint of this moment, which the next one replaces."""
    saving = (h for h in runner.hooks if isinstance(h, CheckpointHook))
    folder = str(next((h.out_dir for h in saving), runner.work_dir))
    meta['epoch'] = runner.epoch
    runner.save_checkpoint(folder, INTERRUPTED, meta=meta)
    path = os.path.join(folder, INTERRUPTED)
    if is_main_process():
        (Path(runner.work_dir) / LAST_CHECKPOINT).write_text(path)
    # A process that leaves early would end the one that still writes.
    barrier()
    runner.logger.warning(
        f'{signal.Signals(number).name}: saved {path}; to go on, run the same '
        'command with --resume'
    )
    raise SystemExit(128 + number)


@HOOKS.register_module()
class PredictionFilesHook(Hook):
    """Write what a test predicts: one file an image, in its sub-folder.

    Sub-folders are those below the folder that all images are in, so that
    equal names in several of them are kept apart.

    Args:
        pictures: Folder for the images with predictions drawn on them.
        label_maps: Folder for the label maps of a segmentor, PNG.
        **drawing: Arguments of the visualiser, such as ``pred_score_thr``.
    """

    def __init__(
        self,
        pictures: str | None = None,
        label_maps: str | None = None,
        **drawing,
    ) -> None:
        self.pictures, self.label_maps = pictures, label_maps
        self.drawing = drawing

    def before_test(self, runner: Runner) -> None:
        """Find the folder that all images are in.

        Raises:
            UsageError: Two images would have one file.
        """
        data = runner.test_dataloader.dataset
        paths = [data.get_data_info(i)['img_path'] for i in range(len(data))]
        self.root = os.path.commonpath(map(os.path.dirname, paths))
        if self.label_maps is None:
            return
        seen: dict[str, str] = {}
        for path in paths:
            other = seen.setdefault(os.path.splitext(path)[0], path)
            if other != path:
                raise UsageError(
                    f'{other} and {path} would be one label map: rename one'
                )

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any, outputs: list
    ) -> None:
        """Write the files of a batch."""
        for sample in outputs:
            name = Path(os.path.relpath(sample.img_path, self.root))
            if self.label_maps is not None:
                labels = sample.pred_sem_seg.data.squeeze().cpu().numpy()
                # The annotations count classes from 1 then; 0 is none.
                labels = labels + bool(sample.get('reduce_zero_label', False))
                file = Path(self.label_maps, name).with_suffix('.png')
                mmcv.imwrite(labels.astype('uint8'), str(file))
            if self.pictures is not None:
                draw = getattr(
                    runner.visualizer,
                    'visualize_cls',
                    runner.visualizer.add_datasample,
                )
                draw(
                    name=name.name,
                    image=mmcv.imread(sample.img_path, channel_order='rgb'),
                    data_sample=sample,
                    out_file=str(Path(self.pictures, name)),
                    **self.drawing,
                )


@HOOKS.register_module()
class AnchorStatisticsHook(Hook):
    """Log the state of the anchors of every layer.

    Scalars are ``anchors/LAYER/FIGURE``, with the figures of
    :func:`~anchorformer_mm.analysis.anchor_state.anchor_figures`, means over
    heads and over the batch of the (first) process. They are made in those
    training steps alone that mmengine's ``LoggerHook`` logs. Anchors that do
    not tell tokens apart are named in a warning, once.
    """

    def before_train(self, runner: Runner) -> None:
        """Find the layers with anchors."""
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        self._layers = anchor_layers(model)
        self._watching, self._told = ExitStack(), set()
        if not self._layers:
            runner.logger.warning(
                'AnchorStatisticsHook: no layer of the model has anchors'
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Watch the layers in a step that is logged."""
        if not self._layers or not self._is_logged(runner, batch_idx):
            return
        self._found: dict[str, dict[str, torch.Tensor]] = {}
        for name, layer in self._layers.items():
            keep = partial(self._keep, name.removesuffix('.attn'))
            self._watching.enter_context(watch_weights(layer, keep))
        if runner.cfg.get('compile') and hasattr(torch.compiler, 'set_stance'):
            # What is compiled passes hooks by.
            stance = torch.compiler.set_stance('force_eager')
            self._watching.enter_context(stance)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, *args, **kwargs
    ) -> None:
        """Hand the figures to the log, before it is written."""
        if not self._layers or not self._is_logged(runner, batch_idx):
            return
        self._watching.close()
        missing = {n.removesuffix('.attn') for n in self._layers}
        missing -= {*self._found, *self._told}
        if missing:
            self._told |= missing
            runner.logger.warning(
                f'AnchorStatisticsHook: {listing(sorted(missing))} did not '
                'run, or run compiled (torch >= 2.6 can be told not to)'
            )
        for name, found in self._found.items():
            figures = {key: float(value) for key, value in found.items()}
            for key, value in figures.items():
                tag = f'train/anchors/{name}/{key}'
                runner.message_hub.update_scalar(tag, value)
            state = name, are_uniform(figures)
            if not tell_tokens_apart(figures) and state not in self._told:
                self._told.add(state)
                runner.logger.warning(
                    f'iteration {runner.iter + 1}: anchors of {name} do not '
                    f'tell tokens apart ({in_words(figures)})'
                )

    def _keep(self, name: str, weights: tuple, *args, **kwargs) -> None:
        figures = anchor_figures(*weights)
        self._found[name] = {key: f.mean() for key, f in figures.items()}

    def _is_logged(self, runner: Runner, batch_idx: int) -> bool:
        """As mmengine's LoggerHook decides."""
        hooks = (h for h in runner.hooks if isinstance(h, LoggerHook))
        logger = next(hooks, None)
        if logger is None:
            return False
        loader = runner.train_dataloader
        rest = not logger.ignore_last or len(loader) <= logger.interval
        return self.every_n_inner_iters(batch_idx, logger.interval) or (
            rest and self.end_of_epoch(loader, batch_idx)
        )
