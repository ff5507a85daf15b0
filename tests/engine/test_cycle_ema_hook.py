"""Averages in a run: cycles, checkpoints, resumption."""

import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint

from anchorformer_mm.engine.picodet_schedule import ThresholdEMA
from anchorformer_mm.registry import HOOKS

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
    """Of epochs 1, 1 and 2, 3, 3 and 4, 5: a cycle's end has all of it."""
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


@pytest.mark.parametrize('epoch', range(1, EPOCHS))
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


@pytest.mark.parametrize(('epoch', 'steps'), [(1, 3), (2, 6), (3, 3)])
def test_the_count_of_steps_starts_anew_with_a_cycle(trained, epoch, steps):
    assert saved(trained, epoch)['ema_state_dict']['steps'] == steps


def test_before_its_first_step_a_cycle_averages_the_weights_as_they_are(
    make_runner, trained
):
    runner = make_runner(
        [cycle_ema()],
        load_from=f'{trained.work_dir}/epoch_{CYCLE}.pth',
        resume=True,
    )
    hook = next(h for h in runner.hooks if hasattr(h, 'cycle_epochs'))
    hook.before_run(runner)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.load_or_resume()
    raw = trained.recorder.raw[CYCLE * EPOCH_LENGTH - 1]
    assert_same(runner.model.state_dict(), raw)
    hook.before_train_epoch(runner)
    hook.before_val_epoch(runner)
    assert_same(runner.model.state_dict(), raw)
    hook.after_val_epoch(runner)
    assert_same(runner.model.state_dict(), raw)


def test_any_average_of_mmengine_can_have_cycles(make_runner):
    runner = make_runner([cycle_ema(ema_type='StochasticWeightAverage')])
    runner.train()
    last = [runner.recorder.raw[step]['fc.bias'] for step in (12, 13, 14)]
    averaged = runner.recorder.evaluated[EPOCHS]['fc.bias']
    torch.testing.assert_close(averaged, torch.stack(last).mean(0))


@pytest.mark.parametrize('epochs', [0, -1, 1.5, None])
def test_a_wrong_cycle_is_named(epochs):
    with pytest.raises(ValueError, match=f'cycle_epochs .* got {epochs}'):
        HOOKS.build(dict(type='CycleEMAHook', cycle_epochs=epochs))


def test_a_loop_without_epochs_is_refused(make_runner):
    runner = make_runner(
        [cycle_ema()],
        train_cfg=dict(by_epoch=False, max_iters=4, val_interval=2),
    )
    with pytest.raises(ValueError, match='cycle_epochs .*IterBasedTrainLoop'):
        runner.train()
