"""Infinite and undefined numbers stay out of the weights."""

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import Dataset

from anchorformer_mm.engine.hooks import NonFiniteHook
from anchorformer_mm.engine.hooks.non_finite_hook import NonFiniteError

BAD_ITERATION = 4


class Images(Dataset):
    metainfo = None

    def __len__(self):
        return 12

    def __getitem__(self, index):
        sample = BaseDataElement(metainfo=dict(img_path=f'{index}.jpg'))
        return dict(inputs=torch.full((4,), index + 1.0), data_samples=sample)


class Model(BaseModel):
    """Fails at one iteration (of the forward passes), as it is told."""

    def __init__(self, failure):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.bn = nn.BatchNorm1d(3)
        self.failure = failure
        self.count = 0

    def forward(self, inputs, data_samples=None, mode='tensor'):
        inputs = torch.stack(inputs)
        bad = self.count == BAD_ITERATION or self.failure == 'always'
        self.count += 1
        if bad and self.failure in ('loss', 'always'):
            inputs = inputs * float('inf')
        out = self.bn(self.fc(inputs))
        if bad and self.failure == 'gradient':
            # Finite itself; its derivative at 0 is not.
            out = out + (out * 0).abs().sqrt()
        return dict(loss_cls=out.square().mean(), loss_box=out.mean() * 0 + 1)


class States(Hook):
    priority = 'LOWEST'

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, **kwargs):
        state = runner.model.state_dict()
        self.seen.append({k: v.clone() for k, v in state.items()})


@pytest.fixture
def make(make_runner):
    def make(failure, action='stop', more=(), **options):
        hook = dict(type='anchorformer_mm.NonFiniteHook', action=action)
        states = States()
        loader = dict(
            batch_size=4,
            dataset=Images(),
            sampler=dict(type='DefaultSampler', shuffle=False),
        )
        runner = make_runner(
            [hook, states, *more],
            train_dataloader=loader,
            val_dataloader=None,
            val_cfg=None,
            val_evaluator=None,
            train_cfg=dict(by_epoch=True, max_epochs=5),
            **(dict(model=Model(failure)) | options),
        )
        runner.states = states.seen
        return runner

    return make


def test_a_finite_run_is_left_alone(make):
    runner = make('never')
    runner.train()
    assert runner.iter == 15


@pytest.mark.parametrize(
    ('failure', 'words'),
    [
        ('loss', r'the loss is not finite \(loss = nan, loss_cls = nan'),
        ('gradient', r'the gradient of a finite loss is not .*loss_box = 1\)'),
    ],
)
def test_the_run_stops_before_the_step(make, failure, words):
    runner = make(failure)
    with pytest.raises(NonFiniteError, match=words) as error:
        runner.train()
    assert str(error.value).startswith('iteration 5: ')
    # The fifth batch is the second of the second epoch.
    assert 'images: 4.jpg, 5.jpg, 6.jpg, 7.jpg.' in str(error.value)
    assert len(runner.states) == 4
    for name, value in runner.model.named_parameters():
        assert torch.equal(value, runner.states[-1][name]), name


@pytest.mark.parametrize('failure', ['loss', 'gradient'])
def test_a_skipped_step_leaves_everything_as_it_was(make, failure):
    runner = make(failure, action='skip')
    runner.train()
    before, after = runner.states[BAD_ITERATION - 1 : BAD_ITERATION + 1]
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    last = runner.states[-1]
    assert all(value.isfinite().all() for value in last.values())
    assert not torch.equal(last['fc.weight'], after['fc.weight'])
    assert (
        next(h for h in runner.hooks if isinstance(h, NonFiniteHook)).skipped
        == 1
    )


def test_a_gathered_step_names_the_batch_that_broke_it(make):
    wrapper = dict(
        type=OptimWrapper,
        optimizer=dict(type='SGD', lr=0.1),
        accumulative_counts=3,
    )
    with pytest.raises(NonFiniteError, match='iteration 5.*images: 4.jpg'):
        make('loss', optim_wrapper=wrapper).train()


def test_no_gathered_gradient_of_it_gets_into_a_checkpoint(make):
    wrapper = dict(
        type=OptimWrapper,
        optimizer=dict(type='SGD', lr=0.1),
        accumulative_counts=3,
    )
    runner = make('loss', optim_wrapper=wrapper)
    with pytest.raises(NonFiniteError, match='iteration 5'):
        runner.train()
    # The step is due after the sixth; the fifth itself is not gathered.
    assert len(runner.states) == 4
    assert all(p.grad.isfinite().all() for p in runner.model.parameters())


class Overflows(Hook):
    """An infinite learning rate, which no loss and no gradient shows."""

    def before_train_iter(self, runner, **kwargs):
        if runner.iter == 14:
            runner.optim_wrapper.optimizer.param_groups[0]['lr'] = float('inf')


def test_weights_that_are_not_finite_are_not_saved(make):
    words = r'after iteration 15 4 weights .* \(fc.weight, .*learning rate'
    runner = make('never', more=[Overflows()])
    with pytest.raises(NonFiniteError, match=words):
        runner.train()
    saved = sorted(Path(runner.work_dir).glob('*.pth'))
    assert [path.name for path in saved][-1] == 'epoch_4.pth'


def test_skipping_for_ever_stops(make):
    with pytest.raises(NonFiniteError, match='10 steps before it were left'):
        make('always', action='skip').train()


@pytest.mark.parametrize(
    ('loss_scale', 'failure', 'stops'),
    [
        ('dynamic', 'never', False),
        ('dynamic', 'gradient', False),
        (dict(init_scale=1.0), 'gradient', True),
        (512.0, 'gradient', True),
        ('dynamic', 'loss', True),
    ],
)
def test_overflow_under_a_dynamic_scale_is_left_to_the_scaler(
    make, amp_on_a_cpu, loss_scale, failure, stops
):
    wrapper = dict(
        type='AmpOptimWrapper',
        loss_scale=loss_scale,
        optimizer=dict(type='SGD', lr=0.1),
    )
    runner = make(failure, optim_wrapper=wrapper)
    if stops:
        with pytest.raises(NonFiniteError):
            runner.train()
        return
    runner.train()
    overflowed = failure == 'gradient'
    assert runner.optim_wrapper.loss_scaler.get_scale() == (
        32768.0 if overflowed else 65536.0
    )
    # Running statistics go on, weights do not.
    before, after = runner.states[BAD_ITERATION - 1 : BAD_ITERATION + 1]
    same = torch.equal(before['fc.weight'], after['fc.weight'])
    assert same == overflowed
    assert all(value.isfinite().all() for value in runner.states[-1].values())


def test_an_unknown_action_is_refused():
    with pytest.raises(ValueError, match="action must be one of .*'ignore'"):
        NonFiniteHook('ignore')
