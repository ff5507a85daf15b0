"""Batches that follow from their number."""

import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader, Dataset

from anchorformer_mm.engine.resuming.data_order import (
    ResumedIterator,
    number_batches,
)


class Draws(Dataset):
    """Of each sample its index, and a draw from each generator."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        draws = random.random(), np.random.rand(), torch.rand(()).item()
        return index, *draws


def collate(samples):
    return [*samples, np.random.rand()]


def make_loader(workers=0, sampler=InfiniteSampler):
    dataset = Draws()
    loader = DataLoader(
        dataset,
        batch_size=2,
        sampler=sampler(dataset, seed=3),
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
    )
    number_batches(loader, seed=5, rank=0)
    loader.batch_sampler.continues = True
    return loader


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def test_batches_do_not_depend_on_workers_nor_on_the_model():
    one = take(iter(make_loader()), 5)
    torch.rand(9), np.random.rand(9), random.random()
    assert take(iter(make_loader(workers=2)), 5) == one
    draws = [sample[1:] for batch in one for sample in batch[:2]]
    assert len(set(draws)) == 10


def test_the_model_does_not_notice_the_data():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    take(iter(make_loader()), 2)
    after = torch.rand(()), random.random(), np.random.rand()
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    assert after == (torch.rand(()), random.random(), np.random.rand())


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('sampler', [InfiniteSampler, DefaultSampler])
def test_going_on_gives_the_same_batches(workers, sampler, monkeypatch):
    # mmengine rests before it starts a finite loader anew.
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda s: None)
    unbroken = take(ResumedIterator(make_loader(workers, sampler), 0), 8)
    for done in (2, 3, 5):
        loader = make_loader(workers, sampler)
        # As the loop of mmengine 0.10.7 does, before it resumes.
        next(iter(loader))
        iterator = ResumedIterator(loader, done)
        assert take(iterator, done) == [None] * done
        assert take(iterator, 8 - done) == unbroken[done:]


def test_an_epoch_can_be_entered_in_its_middle():
    unbroken = list(make_loader(sampler=DefaultSampler))
    for done in (1, 3):
        loader = make_loader(sampler=DefaultSampler)
        loader.batch_sampler.skip = loader.batch_sampler.start = done
        assert list(loader) == unbroken[done:]
