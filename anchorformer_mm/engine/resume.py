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

import cv2
import mmcv
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
from torch.utils.data import DataLoader

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
    non_finite=dict(type='anchorformer_mm.NonFiniteHook'),
    resume=dict(type='anchorformer_mm.ResumeHook'),
    interruption=dict(type='anchorformer_mm.InterruptionHook'),
)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_watched: list[int] = []
_received: list[int] = []


def requested_signal() -> int:
    """The first signal since :func:`stopping_in_order` began, or 0."""
    return _received[0] if _received else 0


@contextmanager
def stopping_in_order() -> Iterator[None]:
    """Take the first signal as a request; the second ends at once.

    Ignored signals stay so. Of processes that are forked meanwhile, SIGTERM
    alone ends them.
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


def _mask(how: int) -> None:
    if _watched:
        signal.pthread_sigmask(how, _watched)


def _set_up_child() -> None:
    for number in _watched:
        ends = number == signal.SIGTERM
        signal.signal(number, signal.SIG_DFL if ends else signal.SIG_IGN)
    _mask(signal.SIG_UNBLOCK)
    _watched.clear()
    _received.clear()


# A child would lose a signal that comes before it is set up: a pool that ends
# its workers with SIGTERM then waits for ever.
os.register_at_fork(
    before=partial(_mask, signal.SIG_BLOCK),
    after_in_parent=partial(_mask, signal.SIG_UNBLOCK),
    after_in_child=_set_up_child,
)


def _start_worker(init: Callable[[int], None] | None, number: int) -> None:
    """Let a loader's worker end when its trainer says so, and not before.

    SLURM sends SIGTERM to all processes, and the last step needs the workers.
    """

    def wait_for_trainer() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        # As torch's own handler.
        os._exit(0)

    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    # On macOS, the sender is not known.
    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=wait_for_trainer, daemon=True).start()
    if init is not None:
        init(number)


def get_random_states() -> dict:
    """States of Python, NumPy, torch and a GPU in use, as plain data."""
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

    Attributes:
        number: Of the batch that comes next.
        skip: Batches to leave out, without a number, before that.
    """

    def __init__(self, batch_sampler: Any) -> None:
        self.batch_sampler = batch_sampler
        self.number = 0
        self.skip = 0

    def __iter__(self) -> Iterator[list[int]]:
        skip, self.skip = self.skip, 0
        for indices in islice(self.batch_sampler, skip, None):
            self.number += 1
            yield [self.number - 1, *indices]

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batch_sampler, name)


def _load(dataset: Any, entropy: Sequence[int], batch: list[int]) -> list:
    """Load a batch under its own seed, which is also that of the collating."""
    number, *indices = batch
    words = np.random.SeedSequence((*entropy, number)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    # torch.manual_seed would seed the devices, too.
    torch.default_generator.manual_seed(int(words[2]))
    return [_load_item(dataset, i) for i in indices]


def _load_item(dataset: Any, index: int) -> Any:
    try:
        return dataset[index]
    except Exception:
        # Errors of decoders do not name the file.
        info = getattr(dataset, 'get_data_info', lambda _: {})(index)
        for name in ('img_path', 'seg_map_path'):
            if '://' in (path := str(info.get(name) or '://')):
                continue
            image = None
            with suppress(OSError, cv2.error):
                image = mmcv.imread(path)
            if image is None:
                raise UsageError(f'the image cannot be read: {path}') from None
        raise


def number_batches(loader: DataLoader, entropy: Sequence[int]) -> None:
    """Make the data of a loader follow from the number of each batch.

    Args:
        loader: Of a training, over which nothing iterates yet.
        entropy: Seed of the run and rank of the process.
    """
    data = loader.dataset
    # Torch's protocol for loading a batch at once.
    data.__getitems__ = partial(_load, data, tuple(entropy))
    batches = NumberedBatches(loader.batch_sampler)
    # It refuses plain assignment, for those that iterate already.
    object.__setattr__(loader, 'batch_sampler', batches)


def take_checkpoint(cfg: Config, resume: str | None) -> dict | None:
    """Choose and read the checkpoint that a training goes on from.

    ``resume``, ``load_from`` and the seed of the config, from which the data
    follow, are set accordingly.

    Args:
        cfg: Of the training, with its ``work_dir``.
        resume: A file; ``'auto'`` for the newest of the work folder that can
            be read; None for what the config says, and for ``'auto'`` in
            processes that torchrun has started again.

    Returns:
        dict | None: The checkpoint; None if the training begins, or if
        mmengine is to fetch it from elsewhere.

    Raises:
        UsageError: The file, or every one in the folder, cannot be read or is
            none of a training.
    """
    restarts = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    elif resume is None and restarts:
        resume = 'auto'
    elif resume is None:
        return None
    checkpoint = None
    if resume == 'auto':
        chosen = [None]
        if is_main_process():
            chosen[0], checkpoint = _newest_readable(cfg)
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
    seed = checkpoint['meta'].get('seed')
    if seed is not None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    return checkpoint


def _newest_readable(cfg: Config) -> tuple[str | None, dict | None]:
    """The checkpoint that ``last_checkpoint`` names, or the newest other."""
    folder = Path(cfg.work_dir)
    named = folder / LAST_CHECKPOINT
    # Times of files may be those of a copy.
    last = Path(named.read_text().strip()).name if named.is_file() else ''
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if hook.get('out_dir') is not None:
        # As mmengine's hook derives it.
        folder = Path(hook['out_dir']) / folder.name
    found = [
        (path.name == last, path.stat().st_mtime_ns, str(path))
        # Names with a dot are of what a killed training was writing.
        for path in folder.glob('[!.]*.pth')
        if not path.name.startswith('best_')
    ]
    problems = []
    for *_, path in sorted(found, reverse=True):
        try:
            checkpoint = _read_training(path)
        except UsageError as error:
            problems.append(f'{error}: not resumed')
            print(f'warning: {problems[-1]}', file=sys.stderr)
        else:
            return path, checkpoint
    if problems:
        raise UsageError('; '.join([*problems, 'choose another --work-dir']))
    return None, None


def _read_training(path: str | Path) -> dict:
    """Read what mmengine's ``Runner.resume`` needs."""
    checkpoint = read_checkpoint(path)
    needed = ('meta', 'state_dict', 'message_hub')
    if not all(isinstance(checkpoint.get(name), dict) for name in needed):
        raise UsageError(
            f'{path} is not a checkpoint to resume from: that of a training '
            f'has {", ".join(needed)}'
        )
    return checkpoint


class ResumableRunner(Runner):
    """mmengine's runner that can be stopped, killed and resumed.

    Attributes:
        checkpoint: What :func:`take_checkpoint` read, in place of the file.
        strict: Refuse a checkpoint of another model, as a test must.
        run_state: ``meta['run_state']`` of the checkpoint that is resumed, if
            this runner wrote it.
        epoch_start: Iteration with which the epoch under way began.
    """

    checkpoint: dict | None = None
    strict: bool = False
    run_state: dict | None = None
    epoch_start: int = 0

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """Register hooks of our own beside mmengine's, unless taken out."""
        hooks = HOOKS | dict(hooks or {})
        saving = hooks.get('checkpoint', dict(interval=1)) or {}
        kind = saving.get('type', CheckpointHook) if saving else None
        if isinstance(kind, str):
            kind = MMENGINE_HOOKS.get(kind)
        if kind is CheckpointHook:
            safe = dict(type='anchorformer_mm.SafeCheckpointHook')
            hooks['checkpoint'] = dict(saving) | safe
        for name in HOOKS:
            if hooks[name] is None:
                del hooks[name]
        super().register_default_hooks(hooks)

    def wrap_model(
        self, model_wrapper_cfg: dict | None, model: nn.Module
    ) -> nn.Module:
        """Wrap the model for several processes; without GPUs, SyncBN is BN."""
        if not torch.cuda.is_available():
            model = revert_sync_batchnorm(model)
        return super().wrap_model(model_wrapper_cfg, model)

    def build_dataloader(
        self, dataloader: DataLoader | dict, *args, **kwargs
    ) -> DataLoader:
        """Build a loader; the batches of a training follow from the seed."""
        built = Runner.build_dataloader(dataloader, *args, **kwargs)
        # The seed of its workers: drawn from the model's stream otherwise.
        built.generator = torch.Generator().manual_seed(self.seed)
        built.worker_init_fn = partial(_start_worker, built.worker_init_fn)
        if dataloader is self._train_dataloader:
            number_batches(built, (self.seed, get_rank()))
        return built

    def train(self) -> nn.Module:
        """Train; the first signal stops after the step under way.

        Raises:
            UsageError: An image cannot be read, or a batch is too small for a
                batch norm.
        """
        try:
            with stopping_in_order():
                return super().train()
        except UsageError as error:
            # That of a worker comes with its traceback.
            *_, reason = str(error).rpartition('UsageError: ')
            raise UsageError(reason.strip()) from error
        except ValueError as error:
            if 'Expected more than 1 value per channel' not in str(error):
                raise
            raise UsageError(
                f'a batch norm needs more than one value per channel ({error})'
                ': enlarge train_dataloader.batch_size or the images, or leave'
                ' the small last batch out: train_dataloader.drop_last=True'
            ) from error

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict:
        """Load the weights of a checkpoint; run no code from it.

        Raises:
            UsageError: It cannot be read, or is of another model although the
                run is strict or resumes.
        """
        checkpoint, self.checkpoint = self.checkpoint, None
        if checkpoint is None and '://' in str(filename):
            with weights_only():
                checkpoint = CheckpointLoader.load_checkpoint(filename, 'cpu')
        elif checkpoint is None:
            checkpoint = read_checkpoint(filename)
        weights = checkpoint.get('state_dict', checkpoint)
        weights = {n.removeprefix('module.'): w for n, w in weights.items()}
        checkpoint = dict(checkpoint, state_dict=weights)
        meta = checkpoint.get('meta') or {}
        # As mmcv 1.x wrote it. mmengine would run it, as it does configs.
        meta.pop('config', None)

        model = self.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        strict = self.strict or self._resume
        taken, table = fit_weights(model, weights, filename, strict)
        if table:
            self.logger.warning(
                f'weights of {filename}; what was not taken keeps its initial '
                f'values, what is frozen does not train:\n{table}'
            )
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        # Hooks exchange weights, as those of averages do.
        model.load_state_dict({n: weights[n] for n in taken}, strict=False)
        if self._resume:
            self.run_state = meta.get('run_state')
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def save_checkpoint(
        self, out_dir: str, filename: str, *args, meta: dict, **kwargs
    ) -> None:
        """Write a checkpoint that is whole or not there.

        Arguments are mmengine's; ``meta`` has the ``epoch`` and ``iter`` that
        are done, and may have parts of ``run_state``.

        Raises:
            UsageError: The file cannot be written.
        """
        meta = dict(meta)
        # mmengine saves before it counts an iteration or epoch as done, and
        # again, with the numbers as they are, after an evaluation.
        done = meta['epoch'], meta['iter']
        in_epoch = done == (self.epoch, self.iter + 1) and isinstance(
            self.train_loop, EpochBasedTrainLoop
        )
        state = dict(
            batches_done=meta['iter'] - self.epoch_start if in_epoch else 0,
            evaluation_due=not in_epoch and done != (self.epoch, self.iter),
            # All processes have to be here: their states are gathered.
            random=all_gather_object(get_random_states()),
        )
        meta['run_state'] = state | meta.get('run_state', {})
        if not is_main_process():
            return
        kwargs['meta'] = meta
        if '://' in str(out_dir):
            # A store of objects writes it as a whole.
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        path = Path(out_dir, filename)
        try:
            with replacing(path) as new:
                super().save_checkpoint(out_dir, new.name, *args, **kwargs)
                # The content is on the disk before its name is.
                with new.open('rb+') as file:
                    os.fsync(file.fileno())
        except OSError as error:
            raise UsageError(f'cannot write {path}: {error}') from error


class EvaluationRunner(ResumableRunner):
    """Runner of a test: refuses weights of another model, writes no config.

    The work folder may hold that of the training, which a test has changed.
    """

    strict = True

    def dump_config(self) -> None:
        """Leave the work folder's config as it is."""
