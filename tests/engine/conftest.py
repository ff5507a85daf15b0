"""A tiny network with a norm, and a run of mmengine's Runner on it."""

from functools import partial
from itertools import count

import mmengine.optim.optimizer.amp_optimizer_wrapper as amp
import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

EPOCH_LENGTH = 3


class TinyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.bn = nn.BatchNorm1d(3)

    def forward(self, inputs, mode='tensor'):
        out = self.bn(self.fc(torch.stack(inputs)))
        return dict(loss=out.abs().mean()) if mode == 'loss' else out


class Noise(Dataset):
    metainfo = None

    def __len__(self):
        return 4 * EPOCH_LENGTH

    def __getitem__(self, index):
        seed = torch.Generator().manual_seed(index)
        return dict(inputs=torch.randn(4, generator=seed))


class Nothing(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(score=0.0)


def copy_of(state):
    return {name: value.clone() for name, value in state.items()}


class Recorder(Hook):
    """What every step left behind, and what every evaluation saw."""

    priority = 'LOWEST'

    def __init__(self):
        self.rates, self.raw, self.evaluated = {}, {}, {}

    def before_train_iter(self, runner, **kwargs):
        groups = runner.optim_wrapper.param_groups
        self.rates[runner.iter] = [group['lr'] for group in groups]

    def after_train_iter(self, runner, **kwargs):
        self.raw[runner.iter] = copy_of(runner.model.state_dict())

    def before_val_iter(self, runner, **kwargs):
        self.evaluated[runner.epoch] = copy_of(runner.model.state_dict())

    before_test_iter = before_val_iter


@pytest.fixture
def make_runner(tmp_path):
    """Make a Runner of 3 iterations an epoch that saves and evaluates after
    every one, with a ``recorder``; keyword arguments override it, and
    ``kind`` is the runner's class."""
    numbers = count()

    def make(hooks=(), epochs=5, kind=Runner, **overrides):
        torch.manual_seed(0)
        loader = dict(
            batch_size=4, dataset=Noise(), sampler=dict(type='DefaultSampler')
        )
        number = next(numbers)
        recorder = Recorder()
        settings = dict(
            model=TinyModel(),
            work_dir=str(tmp_path / str(number)),
            train_dataloader=loader,
            train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1),
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=0.4, momentum=0.9)
            ),
            val_dataloader=loader,
            val_cfg=dict(),
            val_evaluator=Evaluator([Nothing(prefix='tiny')]),
            test_dataloader=loader,
            test_cfg=dict(),
            test_evaluator=Evaluator([Nothing(prefix='tiny')]),
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=1)
            ),
            custom_hooks=[*hooks, recorder],
            experiment_name=f'{tmp_path.name}_{number}',
            log_level='WARNING',
            randomness=dict(seed=0),
        )
        runner = kind(**(settings | overrides))
        runner.recorder = recorder
        return runner

    return make


@pytest.fixture
def amp_on_a_cpu(monkeypatch):
    """mmengine's mixed precision and torch's scaler, without an accelerator:
    mmengine knows the scaler of GPUs alone."""
    monkeypatch.setattr(amp, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(
        amp, 'GradScaler', partial(torch.amp.GradScaler, 'cpu')
    )
