"""PicoDet's averages, their cycles and its rate against closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from anchorformer_mm.engine.picodet_schedule import (
    CycleEMAHook,
    ThresholdEMA,
)
from anchorformer_mm.registry import PARAM_SCHEDULERS


def closed_form(weights, momentum=0.0002):
    """Average of weights (steps, ...) that a shadow from zeros ends at."""
    t = np.arange(len(weights))
    decay = np.minimum(1 - momentum, (1 + t) / (10 + t))
    # What is left of a step at the end: all decays that follow it.
    rest = np.append(np.cumprod(decay[:0:-1])[::-1], 1.0)
    shares = (1 - decay) * rest
    return shares @ weights / (1 - decay[-1] ** len(weights))


def random_steps(model, ema, steps, seed=0):
    """Average random steps of the model; its weights (steps, values)."""
    torch.manual_seed(seed)
    path = []
    for _ in range(steps):
        for value in model.parameters():
            value.data.add_(torch.randn_like(value), alpha=0.1)
        ema.update_parameters(model)
        path.append(flat(model))
    return np.array(path)


def flat(model):
    return torch.cat([p.data.flatten() for p in model.parameters()]).numpy()


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 60),
    momentum=st.floats(1e-4, 0.95),
    seed=st.integers(0, 99),
)
def test_it_is_a_shadow_from_zeros_with_its_bias_corrected(
    steps, momentum, seed
):
    model = nn.Linear(3, 2).double()
    ema = ThresholdEMA(model, momentum)
    path = random_steps(model, ema, steps, seed)
    np.testing.assert_allclose(
        flat(ema.module), closed_form(path, momentum), rtol=1e-9
    )


def test_running_statistics_are_averaged_and_counters_copied():
    norm = nn.BatchNorm1d(2).double()
    ema = ThresholdEMA(norm)
    means = []
    for _ in range(4):
        norm(torch.randn(5, 2, dtype=torch.double))
        means.append(norm.running_mean.numpy().copy())
        ema.update_parameters(norm)
    np.testing.assert_allclose(
        ema.module.running_mean, closed_form(np.array(means))
    )
    assert ema.module.num_batches_tracked == 4


def test_a_weight_of_several_names_takes_each_step_once():
    shared = nn.Linear(2, 2).double()
    model = nn.Sequential(shared, nn.ReLU(), shared)
    ema = ThresholdEMA(model)
    path = random_steps(model, ema, steps=5)
    np.testing.assert_allclose(flat(ema.module), closed_form(path))


# Cycles, in a run

EPOCHS, EPOCH_LENGTH, CYCLE = 5, 3, 2


def cycle_ema(**settings):
    return dict(
        type='anchorformer_mm.CycleEMAHook',
        cycle_epochs=CYCLE,
        priority=49,
        **settings,
    )


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


def saved(runner, epoch):
    path = f'{runner.work_dir}/epoch_{epoch}.pth'
    return CheckpointLoader.load_checkpoint(path, map_location='cpu')


@pytest.fixture
def trained(make_runner):
    runner = make_runner([cycle_ema()])
    runner.train()
    return runner


def test_training_never_sees_the_average(make_runner, trained):
    """Not at a validation, not at a checkpoint, and not at a reset."""
    plain = make_runner()
    plain.train()
    assert len(plain.recorder.raw) == EPOCHS * EPOCH_LENGTH
    for step, raw in plain.recorder.raw.items():
        assert_same(trained.recorder.raw[step], raw)


def test_the_average_is_of_the_current_cycle_alone(trained):
    """Epochs 1, 1 and 2, 3, 3 and 4, 5: a cycle's end has all of it."""
    recorder = trained.recorder
    net = type(trained.model)()
    for epoch in range(1, EPOCHS + 1):
        first = (epoch - 1) // CYCLE * CYCLE * EPOCH_LENGTH
        ema = ThresholdEMA(net)
        for step in range(first, epoch * EPOCH_LENGTH):
            net.load_state_dict(recorder.raw[step])
            ema.update_parameters(net)
        assert_same(recorder.evaluated[epoch], ema.module.state_dict())
        for name in ('fc.weight', 'bn.running_mean'):
            last_raw = recorder.raw[epoch * EPOCH_LENGTH - 1][name]
            assert not torch.equal(recorder.evaluated[epoch][name], last_raw)


@pytest.mark.parametrize('epoch', [1, 2, 3, 5])
def test_a_checkpoint_has_the_average_as_its_weights(
    make_runner, trained, epoch
):
    """In any model, with mmengine's reader and its `test`, hook or none."""
    path = f'{trained.work_dir}/epoch_{epoch}.pth'
    averaged = trained.recorder.evaluated[epoch]
    net = type(trained.model)()
    load_checkpoint(net, path)
    assert_same(net.state_dict(), averaged)
    for hooks in ([], [cycle_ema()]):
        tester = make_runner(hooks, load_from=path)
        tester.test()
        assert_same(tester.recorder.evaluated[0], averaged)


@pytest.mark.parametrize('epoch', [1, 2, 3])
def test_resuming_within_and_between_cycles_is_exact(
    make_runner, trained, epoch
):
    resumed = make_runner(
        [cycle_ema()],
        load_from=f'{trained.work_dir}/epoch_{epoch}.pth',
        resume=True,
    )
    resumed.train()
    assert set(resumed.recorder.raw) == set(
        range(epoch * EPOCH_LENGTH, EPOCHS * EPOCH_LENGTH)
    )
    for step, raw in resumed.recorder.raw.items():
        assert_same(raw, trained.recorder.raw[step])
    for later in range(epoch + 1, EPOCHS + 1):
        assert_same(
            resumed.recorder.evaluated[later],
            trained.recorder.evaluated[later],
        )
        before, after = saved(trained, later), saved(resumed, later)
        assert_same(after['state_dict'], before['state_dict'])
        assert_same(after['ema_state_dict'], before['ema_state_dict'])


# The learning rate

COSINE = 'anchorformer_mm.CosineAfterWarmupLR'
CONFIGS = Path(__file__).parents[2] / 'configs'


def factor(i, total, warmup=300, start=0.1):
    """The factor on the base rate at iteration i."""
    if i < warmup:
        return start + (1 - start) * i / warmup
    return (1 + math.cos(math.pi * (i - warmup) / (total - warmup))) / 2


def schedule(warmup, **settings):
    return [
        dict(
            type='LinearLR', start_factor=0.1, by_epoch=False, end=warmup + 1
        ),
        dict(type=COSINE, warmup_iters=warmup, **settings),
    ]


def simulate(cfgs, rates, epochs, epoch_length):
    """Rates of all groups in every iteration, as a Runner would set them."""
    groups = [dict(params=[torch.zeros(1)], lr=r) for r in rates]
    optimizer = torch.optim.SGD(groups)
    wrapper = OptimWrapper(optimizer)
    schedulers = []
    for cfg in cfgs:
        end = epochs if cfg.get('by_epoch', True) else epochs * epoch_length
        given = dict(optimizer=wrapper, epoch_length=epoch_length, end=end)
        schedulers.append(PARAM_SCHEDULERS.build(given | dict(cfg)))
    seen = []
    for _ in range(epochs * epoch_length):
        seen.append([group['lr'] for group in optimizer.param_groups])
        wrapper.step()
        for scheduler in schedulers:
            scheduler.step()
    return torch.tensor(seen, dtype=torch.float64)


@pytest.mark.parametrize(
    ('name', 'epochs'), [('picodet_s_coco', 300), ('picodet_l_coco', 250)]
)
def test_the_published_schedule_is_followed_in_every_iteration(name, epochs):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    assert cfg.train_cfg.max_epochs == epochs
    base = cfg.optim_wrapper.optimizer.lr
    rates = simulate(cfg.param_scheduler, [base, base / 2], epochs, 9)
    factors = [factor(i, 300 * 9) for i in range(epochs * 9)]
    expected = torch.tensor(factors, dtype=torch.float64)
    torch.testing.assert_close(
        rates, expected[:, None] * torch.tensor([base, base / 2])
    )


@pytest.mark.parametrize(
    ('kind', 'name', 'value'),
    [
        (ThresholdEMA, 'momentum', 0),
        (ThresholdEMA, 'momentum', 1.5),
        (ThresholdEMA, 'interval', 0),
        (CycleEMAHook, 'cycle_epochs', 0),
        (CycleEMAHook, 'cycle_epochs', 1.5),
    ],
)
def test_bad_arguments_are_named(kind, name, value):
    model = [nn.Linear(1, 1)] if kind is ThresholdEMA else []
    with pytest.raises(ValueError, match=f'^{name} must '):
        kind(*model, **{name: value})


@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        # 100 iterations of cosine, 100 of training, and less than none.
        ('warmup_iters', dict(warmup=300, T_max=100, end=1000)),
        ('warmup_iters', dict(warmup=300, T_max=1000, end=100)),
        ('warmup_iters', dict(warmup=-1, T_max=100, end=100)),
        ('by_epoch', dict(warmup=300, T_max=300, by_epoch=True)),
    ],
)
def test_bad_settings_of_the_rate_are_named(name, settings):
    cfg = schedule(**(dict(by_epoch=False) | settings))
    with pytest.raises(ValueError, match=f'^{name} must '):
        simulate(cfg[1:], [1.0], 1, 100)


def test_cycles_of_a_loop_without_epochs_are_refused(make_runner):
    runner = make_runner(
        [cycle_ema()],
        train_cfg=dict(by_epoch=False, max_iters=4, val_interval=2),
    )
    with pytest.raises(ValueError, match='cycle_epochs .*IterBasedTrainLoop'):
        runner.train()
