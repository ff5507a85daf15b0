"""Trainings that end anywhere and go on as if they had not."""

import os
import signal
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import Dataset

import anchorformer_mm.engine.hooks.safe_checkpoint_hook as safe
from anchorformer_mm.engine.resuming.differences import (
    first_difference,
    logged,
    runs_difference,
)
from anchorformer_mm.engine.resuming.interruption import (
    Interrupted,
    ending_in_order,
)
from anchorformer_mm.engine.resuming.resume_point import remove_unfinished
from anchorformer_mm.engine.resuming.runner import ResumableRunner
from anchorformer_mm.utils.checkpoint import weights_only
from anchorformer_mm.utils.errors import UsageError

EPOCHS, EPOCH_LENGTH = 4, 3


class RandomModel(BaseModel):
    """Draws random numbers itself, and has running statistics."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.bn = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.3)

    def forward(self, inputs, mode='tensor'):
        out = self.dropout(self.bn(self.fc(torch.stack(inputs))))
        return dict(loss=out.square().mean()) if mode == 'loss' else out


class RandomData(Dataset):
    """Draws random numbers for each sample."""

    metainfo = None

    def __len__(self):
        return 4 * EPOCH_LENGTH

    def __getitem__(self, index):
        return dict(inputs=torch.randn(4) + index)


class Mean(BaseMetric):
    """The mean output: of the averaged weights, and of these data."""

    def process(self, data_batch, data_samples):
        self.results.append(float(torch.stack(list(data_samples)).mean()))

    def compute_metrics(self, results):
        return dict(mAP=sum(results))


class At(Hook):
    """Does something at one point of one iteration."""

    priority = 'HIGHEST'

    def __init__(self, point, iteration, action):
        self.iteration, self.action = iteration, action
        setattr(self, point, self._act)

    def _act(self, runner, *args, **kwargs):
        if runner.iter == self.iteration:
            self.action()


class Dead(Exception):
    """In place of a SIGKILL, which would also end the test."""


def die():
    raise Dead


def interrupt():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def make(make_runner):
    def make(*hooks, by_epoch=True, interval=1, **overrides):
        torch.manual_seed(0)
        sampler = 'DefaultSampler' if by_epoch else 'InfiniteSampler'
        loader = dict(batch_size=4, dataset=RandomData())
        length = dict(max_epochs=EPOCHS, val_interval=2)
        if not by_epoch:
            length = dict(max_iters=EPOCHS * EPOCH_LENGTH, val_interval=4)
        schedule = dict(type='LinearLR', start_factor=0.1, by_epoch=False)
        ema = dict(type='EMAHook', ema_type='anchorformer_mm.ThresholdEMA')
        checkpoint = dict(
            type='anchorformer_mm.SafeCheckpointHook',
            interval=interval,
            by_epoch=by_epoch,
            max_keep_ckpts=2,
            save_best='tiny/mAP',
        )
        settings = dict(
            kind=ResumableRunner,
            model=RandomModel(),
            train_dataloader=dict(loader, sampler=dict(type=sampler)),
            val_dataloader=dict(loader, sampler=dict(type='DefaultSampler')),
            val_evaluator=Evaluator([Mean(prefix='tiny')]),
            train_cfg=dict(by_epoch=by_epoch, **length),
            param_scheduler=[dict(schedule, end=8)],
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=2),
                checkpoint=checkpoint,
                resume=dict(type='anchorformer_mm.ResumeHook'),
                interruption=dict(type='anchorformer_mm.InterruptionHook'),
            ),
        )
        return make_runner([ema, *hooks], **(settings | overrides))

    return make


def load(path):
    with weights_only():
        return torch.load(path, map_location='cpu', weights_only=True)


def final(runner):
    folder = runner.work_dir
    with open(os.path.join(folder, 'last_checkpoint')) as file:
        last = load(file.read())
    names = sorted(n for n in os.listdir(folder) if n.endswith('.pth'))
    last['names'] = names
    best = [load(os.path.join(folder, n)) for n in names if 'best' in n]
    return last | dict(best=best)


def go_on(make, broken, **options):
    with open(os.path.join(broken.work_dir, 'last_checkpoint')) as file:
        path = file.read()
    runner = make(
        work_dir=broken.work_dir, load_from=path, resume=True, **options
    )
    # Another process would be elsewhere in its stream.
    torch.rand(5)
    runner.train()
    return runner


@pytest.mark.parametrize(
    ('by_epoch', 'interval', 'point', 'iteration'),
    [
        (True, 1, 'before_train_iter', 7),
        (True, 1, 'before_val_epoch', 6),
        (True, 2, 'after_val_iter', 12),
        (True, 1, 'before_save_checkpoint', 9),
        (False, 2, 'before_train_iter', 7),
        (False, 2, 'before_val_epoch', 8),
        (False, 1, 'after_val_iter', 12),
        (False, 1, 'before_save_checkpoint', 9),
    ],
)
def test_a_killed_run_ends_like_the_unbroken_one(
    make, by_epoch, interval, point, iteration
):
    options = dict(by_epoch=by_epoch, interval=interval)
    unbroken = make(**options)
    unbroken.train()
    broken = make(At(point, iteration, die), **options)
    with pytest.raises(Dead):
        broken.train()
    resumed = go_on(make, broken, **options)
    assert first_difference(final(unbroken), final(resumed)) is None


def test_gradients_that_wait_for_a_step_are_not_lost(make):
    optimizer = dict(type='SGD', lr=0.4, momentum=0.9)
    wrapper = dict(optimizer=optimizer, accumulative_counts=2)
    unbroken = make(optim_wrapper=wrapper)
    unbroken.train()
    # The checkpoint is of three iterations, thus of a step and a half.
    broken = make(At('before_train_iter', 4, die), optim_wrapper=wrapper)
    with pytest.raises(Dead):
        broken.train()
    resumed = go_on(make, broken, optim_wrapper=wrapper)
    assert first_difference(final(unbroken), final(resumed)) is None


def test_the_scale_of_mixed_precision_is_not_lost(make, amp_on_a_cpu):
    wrapper = dict(
        type='AmpOptimWrapper',
        loss_scale=dict(growth_interval=4),
        optimizer=dict(type='SGD', lr=0.4, momentum=0.9),
    )
    unbroken = make(optim_wrapper=wrapper)
    unbroken.train()
    broken = make(At('before_train_iter', 7, die), optim_wrapper=wrapper)
    with pytest.raises(Dead):
        broken.train()
    resumed = go_on(make, broken, optim_wrapper=wrapper)
    assert resumed.optim_wrapper.loss_scaler.get_scale() == 65536.0 * 2**3
    assert first_difference(final(unbroken), final(resumed)) is None


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize(
    ('point', 'iteration'),
    [
        ('before_train_iter', 0),
        ('before_train_iter', 7),
        # The last of an epoch.
        ('before_train_iter', 8),
        ('after_val_iter', 12),
    ],
)
def test_an_interrupted_run_ends_like_the_unbroken_one(
    make, point, iteration, by_epoch
):
    options = dict(by_epoch=by_epoch, interval=4)
    unbroken = make(**options)
    unbroken.train()
    broken = make(At(point, iteration, interrupt), **options)
    with ending_in_order(), pytest.raises(Interrupted) as error:
        broken.train()
    assert error.value.exit_status == 143
    state = load(error.value.saved)
    done = iteration + ('train' in point)
    assert state['meta']['iter'] == done
    name = os.path.basename(error.value.saved)
    # Of some moments there is a checkpoint anyway.
    saved = {12: 'epoch_4.pth'}
    if not by_epoch:
        saved = {8: 'iter_8.pth', 12: 'iter_12.pth'}
    assert name == saved.get(done, 'interrupted.pth')
    resumed = go_on(make, broken, **options)
    folders = Path(unbroken.work_dir), Path(resumed.work_dir)
    assert runs_difference(*folders) is None
    # There was something to compare.
    assert len(logged(folders[0])) >= 6


def test_a_write_that_fails_leaves_what_there_was(make, monkeypatch):
    def write_half(backend, obj, filepath):
        with open(filepath, 'wb') as file:
            file.write(obj[: len(obj) // 2])
        raise OSError('no space left')

    name = 'mmengine.fileio.backends.local_backend.LocalBackend.put'
    fail = At(
        'before_save_checkpoint',
        6,
        lambda: monkeypatch.setattr(name, write_half),
    )
    runner = make(fail)
    with pytest.raises(UsageError, match='cannot write .*epoch_2.pth: no sp'):
        runner.train()
    monkeypatch.undo()
    assert load(os.path.join(runner.work_dir, 'epoch_1.pth'))
    files = [n for n in os.listdir(runner.work_dir) if 'epoch' in n]
    assert files == ['epoch_1.pth']


def test_a_killed_write_is_not_taken_for_a_checkpoint(make, monkeypatch):
    seen = []

    def write_half(backend, obj, filepath):
        with open(filepath, 'wb') as file:
            file.write(obj[: len(obj) // 2])
        seen.extend(os.listdir(os.path.dirname(filepath)))
        die()

    name = 'mmengine.fileio.backends.local_backend.LocalBackend.put'
    monkeypatch.setattr(name, write_half)
    with pytest.raises(Dead):
        make().train()
    assert not [n for n in seen if n.startswith('epoch')]
    assert [n for n in seen if n.startswith('.epoch_1.')]


def test_the_old_goes_after_the_new_is_there(make):
    seen = []

    class Watch(Hook):
        priority = 'HIGHEST'

        def before_save_checkpoint(self, runner, checkpoint):
            names = sorted(os.listdir(runner.work_dir))
            seen.append([n for n in names if n.endswith('.pth')])

    runner = make(Watch())
    runner.train()
    # Two are kept, and both are there while the third is written.
    assert {'epoch_1.pth', 'epoch_2.pth'} <= set(seen[-1]) | set(seen[-2])
    for names in seen[3:]:
        assert len([n for n in names if n.startswith('epoch')]) == 2
    left = [n for n in os.listdir(runner.work_dir) if n.startswith('epoch')]
    assert sorted(left) == ['epoch_3.pth', 'epoch_4.pth']


def test_what_a_killed_run_could_not_remove_is_removed(make, monkeypatch):
    unbroken = make()
    unbroken.train()
    monkeypatch.setattr(
        safe.SafeCheckpointHook, '_remove_outdated', lambda self: None
    )
    broken = make(At('before_train_iter', 9, die))
    with pytest.raises(Dead):
        broken.train()
    assert os.path.exists(os.path.join(broken.work_dir, 'epoch_1.pth'))
    monkeypatch.undo()
    resumed = go_on(make, broken)
    assert final(resumed)['names'] == final(unbroken)['names']


def test_no_name_in_a_checkpoint_leads_out_of_the_folder(make, tmp_path):
    """It may be a copy, or be made to have other files removed."""
    others = {}
    for name in ('best_tiny_mAP_epoch_2.pth', 'thesis', 'epoch_1.pth'):
        others[name] = tmp_path / 'others' / name
        others[name].mkdir(parents=True)
    runner = make()
    folder = os.path.join(runner.work_dir, 'kept')
    os.makedirs(folder)
    hub = runner.message_hub
    path = str(others['best_tiny_mAP_epoch_2.pth'])
    hub.update_info('best_ckpt', path)
    hub.update_info('best_score', -1e9)
    hub.update_info('best_ckpt_other', str(others['thesis']))
    hub.update_info('last_ckpt', '../..')
    hub.update_info('keep_ckpt_ids', ['/../kept', 1])
    outdated = ['..', '.', '', folder, f'{folder}/..', 3, *others.values()]
    hub.update_info('outdated_ckpts', [str(path) for path in outdated])
    runner.train()
    assert all(path.is_dir() for path in others.values())
    assert os.path.isdir(folder)
    assert hub.get_info('best_ckpt_other') is None
    best = hub.get_info('best_ckpt')
    assert os.path.dirname(best) == runner.work_dir and os.path.isfile(best)


def test_the_config_in_a_checkpoint_is_not_run(make, tmp_path):
    """mmengine executes ``meta['config']``, which mmcv 1.x wrote."""
    base = make()
    base.train()
    path = os.path.join(base.work_dir, 'epoch_3.pth')
    checkpoint = load(path)
    mark = tmp_path / 'mark'
    checkpoint['meta']['config'] = f'open({str(mark)!r}, "w")'
    torch.save(checkpoint, path)
    make(load_from=path, resume=True).train()
    assert not mark.exists()


def test_another_model_does_not_go_on(make):
    base = make()
    base.train()
    path = os.path.join(base.work_dir, 'epoch_3.pth')
    other = RandomModel()
    other.fc = nn.Linear(5, 3)
    with pytest.raises(UsageError, match=r'fc.weight is \(3, 4\) .*\(3, 5\)'):
        make(load_from=path, resume=True, model=other).train()
    other = RandomModel()
    other.added = nn.Linear(2, 2)
    with pytest.raises(UsageError, match='added.weight is not in .*1 more'):
        make(load_from=path, resume=True, model=other).train()


def test_an_epoch_whose_steps_were_done_ends_alike(make):
    """And its checkpoint, which the interrupted run did not come to."""
    unbroken = make()
    unbroken.train()
    broken = make(At('before_train_iter', 8, interrupt))
    with ending_in_order(), pytest.raises(Interrupted):
        broken.train()
    resumed = go_on(make, broken)
    folders = Path(unbroken.work_dir), Path(resumed.work_dir)
    assert runs_difference(*folders) is None
    assert (folders[1] / 'epoch_3.pth').is_file()


def test_an_epoch_that_got_shorter_is_not_gone_on_with(make):
    broken = make(At('before_train_iter', 7, interrupt))
    with ending_in_order(), pytest.raises(Interrupted):
        broken.train()
    loader = dict(
        batch_size=12,
        dataset=RandomData(),
        sampler=dict(type='DefaultSampler'),
    )
    with pytest.raises(UsageError, match='2 batches into .* now has 1'):
        go_on(make, broken, train_dataloader=loader)


def test_a_fork_of_a_run_leaves_the_best_of_the_original(make, tmp_path):
    base = make()
    base.train()
    best = base.message_hub.get_info('best_ckpt')
    path = os.path.join(base.work_dir, 'epoch_3.pth')
    fork = make(load_from=path, resume=True, work_dir=str(tmp_path / 'fork'))
    # Any score is better than this.
    fork.message_hub.update_info('best_score', -1e9)
    fork.train()
    assert os.path.isfile(best)


def test_a_full_disk_is_told_before_anything_is_written(make, monkeypatch):
    monkeypatch.setattr(safe, '_free_bytes', lambda folder: 2**19)
    runner = make()
    with pytest.raises(UsageError, match='1 MiB, and 0 MiB are free') as error:
        runner.train()
    assert str(runner.work_dir) in str(error.value)
    assert not [n for n in os.listdir(runner.work_dir) if 'epoch' in n]
    cfg = Config(dict(work_dir=runner.work_dir))
    assert remove_unfinished(cfg) == []


def test_a_checkpoint_counts_shared_arrays_once():
    weight = torch.zeros(1000)
    parts = dict(a=weight, b=[weight[:10], dict(c=torch.zeros(1))])
    assert safe._bytes_of(parts) == 4004


def test_a_checkpoint_of_another_runner_goes_on(make, make_runner):
    other = make_runner(epochs=1, model=RandomModel())
    other.train()
    path = os.path.join(other.work_dir, 'epoch_1.pth')
    resumed = make(load_from=path, resume=True)
    resumed.train()
    assert resumed.iter == EPOCHS * EPOCH_LENGTH
