"""Batches whose randomness follows from their number alone.

mmengine seeds a worker once, when it starts: what it draws for a batch then
depends on all batches that it has loaded before, which a resumed training
cannot repeat. Here each batch has a number, the training iteration, and is
loaded and collated under a seed made of the run's seed, the process and that
number, in whatever process and after whatever other batch.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from anchorformer_mm.engine.resuming.interruption import (
    leave_signals_to_the_trainer,
)
from anchorformer_mm.engine.resuming.random_states import (
    get_random_states,
    seed_batch,
    set_random_states,
)


class NumberedBatch(list):
    """Indices of a batch, and its ``number``."""

    number: int


class NumberedBatches:
    """A batch sampler that numbers its batches, and can begin further on.

    Args:
        batch_sampler: The batch sampler to number, which also answers for all
            other attributes.

    Attributes:
        start: Number of the first batch that comes next.
        skip: Batches to pass over, without a number, before that.
        continues: Whether another pass goes on counting, rather than begin
            at ``start`` again.
    """

    def __init__(self, batch_sampler) -> None:
        self.batch_sampler = batch_sampler
        self.start = 0
        self.skip = 0
        self.continues = False

    def __iter__(self) -> Iterator[NumberedBatch]:
        batches = iter(self.batch_sampler)
        for _ in range(self.skip):
            next(batches)
        self.skip = 0
        number = self.start
        for indices in batches:
            batch = NumberedBatch(indices)
            batch.number = number
            number += 1
            yield batch
        if self.continues:
            self.start = number

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __getattr__(self, name: str) -> Any:
        # Also asked before there is a batch_sampler, when it is unpickled.
        if name.startswith('__') or name == 'batch_sampler':
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)


class SeededLoading:
    """Loads and collates each batch under its own seed.

    Args:
        dataset: Map-style data set.
        collate_fn: Of the loader.
        entropy: Run and process, as non-negative integers.
    """

    def __init__(
        self, dataset, collate_fn: Callable, entropy: Sequence[int]
    ) -> None:
        self.dataset = dataset
        self.collate_fn = collate_fn
        self.entropy = tuple(entropy)
        self._states_outside: dict | None = None

    def load(self, batch: NumberedBatch) -> list:
        if get_worker_info() is None:
            # The process of the model, whose own stream must not notice.
            self._states_outside = get_random_states()
        seed_batch(*self.entropy, batch.number)
        return [self.dataset[i] for i in batch]

    def collate(self, samples: list) -> Any:
        data = self.collate_fn(samples)
        if self._states_outside is not None:
            set_random_states(self._states_outside)
            self._states_outside = None
        return data


def number_batches(loader: DataLoader, seed: int, rank: int) -> None:
    """Make the data of a loader follow from the seed and batch numbers.

    In place, and before anything iterates over it. A loader without a batch
    sampler, or over a stream, is left as it is.
    """
    if loader.batch_sampler is None or isinstance(
        loader.dataset, IterableDataset
    ):
        return
    # The seed of its workers: drawn from the model's stream otherwise.
    loader.generator = torch.Generator().manual_seed(seed)
    loading = SeededLoading(loader.dataset, loader.collate_fn, (seed, rank))
    # Torch's protocol for loading a batch at once.
    loader.dataset.__getitems__ = loading.load
    loader.collate_fn = loading.collate
    loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)
    # It refuses plain assignment, for those that iterate already.
    object.__setattr__(
        loader, 'batch_sampler', NumberedBatches(loader.batch_sampler)
    )


def _start_worker(init: Callable[[int], None] | None, number: int) -> None:
    leave_signals_to_the_trainer()
    if init is not None:
        init(number)


class ResumedIterator(_InfiniteDataloaderIterator):
    """The data of an iteration-based loop from some iteration on.

    mmengine 0.10.7 loads, and throws away, all batches before it. Here
    indices are passed over, and no sample is loaded.

    Args:
        loader: Made by :func:`number_batches`.
        done: Iterations that the training has behind it.
    """

    def __init__(self, loader: DataLoader, done: int) -> None:
        batches: NumberedBatches = loader.batch_sampler
        # 0.10.7 has begun to iterate by now.
        loader._iterator = None
        passes = 0
        if isinstance(loader.sampler, InfiniteSampler):
            loader.sampler.indices = loader.sampler._indices_of_rank()
            batches.skip = done
        else:
            passes, batches.skip = divmod(done, len(batches))
            if hasattr(loader.sampler, 'set_epoch'):
                loader.sampler.set_epoch(passes)
        batches.start = done
        self._passed_over = done
        super().__init__(loader)
        self._epoch = passes

    def skip_iter(self, num_iters: int) -> None:
        """Nothing to do for the loop of the maintained fork."""
        self._passed_over = 0

    def __next__(self) -> Any:
        if self._passed_over:
            # The loop of 0.10.7 asks for every batch that was trained with.
            self._passed_over -= 1
            return None
        return super().__next__()
