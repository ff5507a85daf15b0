"""Trainings that can be stopped or killed, and go on from a checkpoint.

A checkpoint is whole or not there, and has the random states of all
processes. Each batch is loaded under a seed made of the run's seed, the
process and the iteration, so that it does not matter what a worker has loaded
before.
"""

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    get_rank,
    is_main_process,
)
from mmengine.hooks import CheckpointHook
from mmengine.model import (
    BaseTTAModel,
    is_model_wrapper,
    revert_sync_batchnorm,
)
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.runner import CheckpointLoader, EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from anchorformer_mm.utils.checkpoint import (
    fit_weights,
    read_checkpoint,
    weights_only,
)
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import replacing

LAST_CHECKPOINT = 'last_checkpoint'
INTERRUPTED = 'interrupted.pth'
# Beside mmengine's default hooks; None under its name takes one out.
HOOKS = dict(
    non_finite='anchorformer_mm.NonFiniteHook',
    resume='anchorformer_mm.ResumeHook',
    interruption='anchorformer_mm.InterruptionHook',
)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_watched: list[int] = []
_received: list[int] = []
_mask: set[int] = set()


def requested_signal() -> int:
    """The first signal since :func:`stopping_in_order` began, or 0."""
    return _received[0] if _received else 0


@contextmanager
def stopping_in_order() -> Iterator[None]:
    """Take the first signal as a request; the second ends at once.

    Signals that are ignored, as SIGHUP is under ``nohup``, stay so. Processes
    that are forked meanwhile have no handler of Python: SIGTERM ends them,
    and they leave the others to this process.
    """

    def handle(number: int, frame: object) -> None:
        if _received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        _received.append(number)
        # The terminal may be what went away.
        with suppress(OSError):
            print(
                f'{signal.Signals(number).name}: saving a checkpoint after '
                'this step; once more to end at once',
                file=sys.stderr,
                flush=True,
            )

    before = {
        number: signal.signal(number, handle)
        for number in _SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    _watched[:] = before
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _watched.clear()
        _received.clear()


def _before_fork() -> None:
    # A child would lose a signal that comes before it is set up: a pool that
    # ends its workers with SIGTERM then waits for ever.
    if _watched:
        _mask.update(signal.pthread_sigmask(signal.SIG_BLOCK, _watched))


def _after_fork(in_child: bool) -> None:
    if not _watched:
        return
    if in_child:
        for number in _watched:
            default = number == signal.SIGTERM
            signal.signal(
                number, signal.SIG_DFL if default else signal.SIG_IGN
            )
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask)
    _mask.clear()
    if in_child:
        _watched.clear()
        _received.clear()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=partial(_after_fork, False),
    after_in_child=partial(_after_fork, True),
)


def _start_worker(init: Callable[[int], None] | None, number: int) -> None:
    """Let a loader's worker end when its trainer says so, and not before.

    Clusters and torchrun send SIGTERM to all processes of a training, which
    needs its workers to end in order. Where the sender of a signal cannot be
    known, as on macOS, workers end on SIGTERM at once.
    """
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_wait_for_trainer, daemon=True).start()
    if init is not None:
        init(number)


def _wait_for_trainer() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    # As torch's own handler.
    os._exit(0)


def get_random_states() -> dict:
    """Take down where Python, NumPy, torch and a GPU in use are.

    That is as plain data, which ``torch.load(..., weights_only=True)`` reads.
    """
    name, keys, *rest = np.random.get_state()
    states = dict(
        python=random.getstate(),
        numpy=(name, torch.from_numpy(keys.astype(np.int64)), *rest),
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states['cuda'] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict) -> None:
    """Go on with the streams that :func:`get_random_states` took down."""
    version, words, gauss = states['python']
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states['torch'].cpu())
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'].cpu())


class NumberedBatches:
    """A batch sampler whose batches begin with a number: the iteration.

    Args:
        batch_sampler: What is numbered; it has all other attributes.
        done: Batches of lower numbers are empty. mmengine 0.10.7 goes through
            them when it resumes an iteration-based training.

    Attributes:
        number: Of the batch that comes next.
        skip: Batches to leave out, without a number, before that.
    """

    def __init__(self, batch_sampler: Any, done: int = 0) -> None:
        self.batch_sampler = batch_sampler
        self.done = done
        self.number = 0
        self.skip = 0

    def __iter__(self) -> Iterator[list[int]]:
        skip, self.skip = self.skip, 0
        for indices in islice(self.batch_sampler, skip, None):
            number = self.number
            self.number += 1
            yield [number, *(indices if number >= self.done else ())]

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __getattr__(self, name: str) -> Any:
        # Also asked before there is a batch_sampler, when it is unpickled.
        if name.startswith('__') or name == 'batch_sampler':
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)


def _load(dataset: Any, entropy: Sequence[int], batch: list[int]) -> list:
    """Load a batch under its own seed, which is also that of the collating."""
    number, *indices = batch
    words = np.random.SeedSequence((*entropy, number)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    # torch.manual_seed would seed the devices, too.
    torch.default_generator.manual_seed(int(words[2]))
    return [dataset[i] for i in indices]


def _collate(collate: Callable, samples: list) -> Any:
    return collate(samples) if samples else None


def number_batches(
    loader: DataLoader, entropy: Sequence[int], done: int = 0
) -> None:
    """Make the data of a loader follow from the number of each batch.

    In place, and before anything iterates over it; streams are left alone.

    Args:
        loader: Of a training.
        entropy: Seed of the run and rank of the process.
        done: As of :class:`NumberedBatches`.
    """
    dataset = loader.dataset
    if loader.batch_sampler is None or isinstance(dataset, IterableDataset):
        return
    # Torch's protocol for loading a batch at once.
    dataset.__getitems__ = partial(_load, dataset, tuple(entropy))
    loader.collate_fn = partial(_collate, loader.collate_fn)
    batches = NumberedBatches(loader.batch_sampler, done)
    # It refuses plain assignment, for those that iterate already.
    object.__setattr__(loader, 'batch_sampler', batches)


def take_checkpoint(cfg: Config, resume: str | None) -> dict | None:
    """Choose and read the checkpoint that a training goes on from.

    ``resume``, ``load_from`` and the seed of the config are set accordingly:
    data follows from the seed, and is built before mmengine loads anything.
    Processes that torchrun has started again go on from the newest.

    Args:
        cfg: Of the training, with its ``work_dir``.
        resume: A file; ``'auto'`` for the newest of the work folder that can
            be read; None for what the config says.

    Returns:
        dict | None: The checkpoint; None if the training begins, or if
        mmengine is to fetch it from elsewhere.

    Raises:
        UsageError: The file, or every one in the folder, cannot be read or is
            none of a training; or a job with restarts begins among
            checkpoints of another one.
    """
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    restarts = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))
    if resume is None and restarts:
        resume = 'auto'
    found = _in_folder(cfg) if is_main_process() else []
    if resume is None:
        if found and int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0)):
            raise UsageError(
                f'{found[0]} is of another training, from which restarts '
                'would go on: choose another --work-dir, or --resume'
            )
        return None
    checkpoint = None
    if resume == 'auto':
        chosen = [None]
        if found:
            chosen[0], checkpoint = _newest_readable(found)
        broadcast_object_list(chosen)
        resume = chosen[0]
    cfg.resume = resume is not None
    if resume is None:
        return None
    cfg.load_from = resume
    if '://' in resume:
        return None
    if checkpoint is None:
        checkpoint = _read_training(resume)
    if checkpoint['meta'].get('seed') is not None:
        randomness = dict(cfg.get('randomness') or {})
        cfg.randomness = randomness | dict(seed=checkpoint['meta']['seed'])
    return checkpoint


def _in_folder(cfg: Config) -> list[Path]:
    """Checkpoints of a work folder but the best ones, the newest first.

    First is the one that ``last_checkpoint`` names: the times of files may be
    those of a copy.
    """
    folder = Path(cfg.work_dir)
    named = folder / LAST_CHECKPOINT
    last = Path(named.read_text().strip()).name if named.is_file() else ''
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if hook.get('out_dir') is not None:
        # As mmengine's hook derives it.
        folder = Path(hook['out_dir']) / folder.name
    found = [p for p in folder.glob('*.pth') if p.name[:5] != 'best_']
    # One that a killed training was writing.
    found = [p for p in found if not p.name.startswith('.')]
    return sorted(
        found,
        key=lambda path: (path.name == last, path.stat().st_mtime_ns),
        reverse=True,
    )


def _newest_readable(paths: Sequence[Path]) -> tuple[str, dict]:
    problems = []
    for path in paths:
        try:
            checkpoint = _read_training(path)
        except UsageError as error:
            problems.append(str(error))
            continue
        if problems:
            told = '; '.join(problems)
            print(f'warning: {told}: resuming {path}', file=sys.stderr)
        return str(path), checkpoint
    raise UsageError(
        'no checkpoint to resume from can be read:\n  '
        + '\n  '.join(problems)
        + '\nTo start anew, remove these, or choose another --work-dir'
    )


def _read_training(path: str | Path) -> dict:
    """Read what mmengine's ``Runner.resume`` needs."""
    checkpoint = read_checkpoint(path)
    needed = ('meta', 'state_dict', 'message_hub')
    missing = [name for name in needed if name not in checkpoint]
    if missing or not isinstance(checkpoint['meta'], dict):
        raise UsageError(
            f'{path} is not a checkpoint to resume from: it lacks '
            f'{", ".join(missing or ["meta of mmengine"])}'
        )
    return checkpoint


class ResumableRunner(Runner):
    """mmengine's runner that can be stopped, killed and resumed.

    Attributes:
        checkpoint: What :func:`take_checkpoint` read; it is loaded in place
            of the file.
        strict: Refuse a checkpoint of another model, as a test and a resumed
            training must. Others warn.
        run_state: What a checkpoint has beyond mmengine's, in
            ``meta['run_state']``; None for a fresh run and for a checkpoint
            of another runner.
        epoch_start: Iteration with which the epoch under way began.
        last_saved: Iteration and path of the last checkpoint to resume from.
    """

    checkpoint: dict | None = None
    strict: bool = False
    run_state: dict | None = None
    epoch_start: int = 0
    last_saved: tuple[int, str] = (-1, '')

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """Register hooks of our own beside mmengine's, unless taken out."""
        hooks = dict(hooks or {})
        saving = hooks.get('checkpoint', dict(type=CheckpointHook, interval=1))
        if isinstance(saving, dict):
            kind = saving.get('type', CheckpointHook)
            if isinstance(kind, str):
                kind = MMENGINE_HOOKS.get(kind)
            if kind is CheckpointHook:
                safe = dict(type='anchorformer_mm.SafeCheckpointHook')
                hooks['checkpoint'] = dict(saving) | safe
        for name, kind in HOOKS.items():
            hook = hooks.pop(name, {})
            if hook is not None:
                hooks[name] = dict(type=kind) | dict(hook)
        super().register_default_hooks(hooks)

    def wrap_model(
        self, model_wrapper_cfg: dict | None, model: nn.Module
    ) -> nn.Module:
        """Wrap the model for several processes; without GPUs, SyncBN is BN."""
        if not torch.cuda.is_available():
            model = revert_sync_batchnorm(model)
        return super().wrap_model(model_wrapper_cfg, model)

    def build_dataloader(
        self,
        dataloader: DataLoader | dict,
        seed: int | None = None,
        diff_rank_seed: bool = False,
    ) -> DataLoader:
        """Build a loader; the batches of a training follow from the seed."""
        built = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        # The seed of its workers: drawn from the model's stream otherwise.
        built.generator = torch.Generator().manual_seed(self.seed)
        built.worker_init_fn = partial(_start_worker, built.worker_init_fn)
        if dataloader is self._train_dataloader:
            meta = (self.checkpoint or {}).get('meta', {})
            entropy = self.seed, get_rank()
            number_batches(built, entropy, meta.get('iter', 0))
        return built

    def train(self) -> nn.Module:
        """Train; the first signal stops after the step under way.

        Raises:
            UsageError: A batch is too small for a batch norm.
        """
        try:
            with stopping_in_order():
                return super().train()
        except ValueError as error:
            if 'Expected more than 1 value per channel' not in str(error):
                raise
            raise UsageError(
                f'a batch norm needs more than one value per channel ({error})'
                ': enlarge train_dataloader.batch_size or the images, or leave'
                ' the small last batch out: train_dataloader.drop_last=True'
            ) from error

    def load_checkpoint(
        self,
        filename: str,
        map_location: Any = 'cpu',
        strict: bool = False,
        **kwargs,
    ) -> dict:
        """Load the weights of a checkpoint; run no code from it.

        Arguments are mmengine's; ``strict`` is as the attribute.

        Raises:
            UsageError: It cannot be read, or is of another model although the
                run is strict or resumes.
        """
        checkpoint, self.checkpoint = self.checkpoint, None
        if checkpoint is None and '://' in str(filename):
            with weights_only():
                checkpoint = CheckpointLoader.load_checkpoint(
                    filename, map_location
                )
        elif checkpoint is None:
            checkpoint = read_checkpoint(filename)
        weights = {
            name.removeprefix('module.'): value
            for name, value in checkpoint.get('state_dict', checkpoint).items()
        }
        checkpoint = dict(checkpoint, state_dict=weights)
        meta = checkpoint.get('meta') or {}
        # As mmcv 1.x wrote it. mmengine would run it, as it does configs.
        meta.pop('config', None)

        model = self.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        fit = fit_weights(model, weights)
        strict = strict or self.strict or self._resume
        if fit.problems and (strict or not fit.taken):
            more = len(fit.problems) - 1
            raise UsageError(
                f'{filename} is of another model: {fit.problems[0]}'
                + (f', and {more} more' if more else '')
            )
        if fit.problems:
            self.logger.warning(
                f'{filename} does not fit the whole model; what it lacks '
                f'keeps its initial values:\n{fit.table()}'
            )
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model.load_state_dict(
            {name: weights[name] for name in fit.taken}, strict=False
        )
        if self._resume:
            self.run_state = meta.get('run_state')
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
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

        Arguments are mmengine's; ``meta`` may have ``run_state``, as far as
        it is not to be derived from the ``epoch`` and ``iter`` that are done.

        Raises:
            UsageError: The file cannot be written.
        """
        meta = dict(meta or {})
        meta['run_state'] = self._state_at(meta) | meta.get('run_state', {})
        # All processes have to be here: their states are gathered.
        meta['run_state']['random'] = all_gather_object(get_random_states())
        if kwargs.get('save_optimizer', True):
            self.last_saved = meta['iter'], os.path.join(out_dir, filename)
        if not is_main_process():
            return
        save = partial(super().save_checkpoint, out_dir, meta=meta, **kwargs)
        if '://' in str(out_dir):
            # A store of objects, which it writes as a whole.
            save(filename, *args)
            return
        path = Path(out_dir) / filename
        try:
            with replacing(path) as unfinished:
                save(unfinished.name, *args)
                # The content is on the disk before its name is.
                with unfinished.open('rb+') as file:
                    os.fsync(file.fileno())
        except OSError as error:
            raise UsageError(f'cannot write {path}: {error}') from error

    def _state_at(self, meta: dict) -> dict:
        """Tell evaluation and epoch from what a checkpoint calls done.

        mmengine saves before it counts an iteration or epoch as done, and
        again, with the numbers as they are, after an evaluation.
        """
        epoch, done = meta.get('epoch'), meta.get('iter')
        if (epoch, done) == (self.epoch, self.iter):
            return dict(evaluation_due=False, batches_done=0)
        in_epoch = isinstance(self.train_loop, EpochBasedTrainLoop)
        if in_epoch and epoch == self.epoch:
            batches = done - self.epoch_start
            return dict(evaluation_due=False, batches_done=batches)
        return dict(evaluation_due=True, batches_done=0)
