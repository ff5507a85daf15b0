"""Trainings that end anywhere, and what resuming them gives."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from torch import nn
from torch.utils.data import DataLoader, Dataset

from anchorformer_mm.engine.resume import (
    ResumableRunner,
    number_batches,
    requested_signal,
    stopping_in_order,
    take_checkpoint,
)
from anchorformer_mm.utils.checkpoint import read_checkpoint
from anchorformer_mm.utils.errors import UsageError

EPOCHS, EPOCH_LENGTH = 4, 3


class RandomModel(BaseModel):
    """Draws random numbers itself, and has running statistics."""

    def __init__(self, width=4):
        super().__init__()
        self.fc = nn.Linear(width, 3)
        self.bn = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.3)

    def forward(self, inputs, index, mode='tensor'):
        out = self.dropout(self.bn(self.fc(torch.stack(inputs))))
        return dict(loss=out.square().mean()) if mode == 'loss' else out


class RandomData(Dataset):
    """Draws random numbers for each sample, and notes what was loaded."""

    metainfo = None

    def __init__(self):
        self.loaded = []

    def __len__(self):
        return 4 * EPOCH_LENGTH

    def __getitem__(self, index):
        self.loaded.append(index)
        return dict(inputs=torch.randn(4) + index, index=index)


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


def loader(batch_size=4, sampler='DefaultSampler'):
    sampler = dict(type=sampler)
    return dict(batch_size=batch_size, dataset=RandomData(), sampler=sampler)


@pytest.fixture
def make(make_runner):
    """Make a run of 4 epochs of 3 iterations, with averages of weights."""

    def make(*hooks, by_epoch=True, interval=1, checkpoint=None, **overrides):
        torch.manual_seed(0)
        length = dict(max_epochs=EPOCHS, val_interval=2)
        if not by_epoch:
            length = dict(max_iters=EPOCHS * EPOCH_LENGTH, val_interval=4)
        saving = dict(
            type='CheckpointHook',
            interval=interval,
            by_epoch=by_epoch,
            max_keep_ckpts=2,
            save_best='tiny/mAP',
        )
        settings = dict(
            kind=ResumableRunner,
            model=RandomModel(),
            train_dataloader=loader(
                sampler='DefaultSampler' if by_epoch else 'InfiniteSampler'
            ),
            val_dataloader=loader(),
            val_evaluator=Evaluator([Mean(prefix='tiny')]),
            train_cfg=dict(by_epoch=by_epoch, **length),
            param_scheduler=[
                dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=8)
            ],
            default_hooks=dict(checkpoint=saving),
        )
        ema = dict(type='EMAHook', ema_type='anchorformer_mm.ThresholdEMA')
        runner = make_runner([ema, *hooks], **(settings | overrides))
        runner.checkpoint = checkpoint
        return runner

    return make


def run(make, *hooks, ends_by=None, **options):
    """Train to the end, or until something is raised."""
    runner = make(*hooks, **options)
    with pytest.raises(ends_by) if ends_by else nullcontext():
        runner.train()
    return runner


def go_on(make, broken, **options):
    """Resume from the work folder of a run, as ``--resume`` does."""
    cfg = Config(dict(work_dir=broken.work_dir))
    checkpoint = take_checkpoint(cfg, 'auto')
    runner = make(**cfg, checkpoint=checkpoint, **options)
    # Another process would be elsewhere in its streams.
    torch.rand(5), np.random.rand(5), random.random()
    runner.train()
    return runner


def exact(value):
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: exact(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [exact(item) for item in value]
    return value


def assert_equal_ends(*runners):
    """Weights, optimiser, schedule, and the best ones are the same."""

    def final(runner):
        folder = Path(runner.work_dir)
        last = read_checkpoint((folder / 'last_checkpoint').read_text())
        names = sorted(p.name for p in folder.glob('*_*.pth'))
        best = [read_checkpoint(folder / n) for n in names if 'best' in n]
        parts = 'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'
        last = [last[part] for part in parts]
        return exact([names, last, [b['state_dict'] for b in best]])

    one, other = map(final, runners)
    assert one == other


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
    unbroken = run(make, **options)
    broken = run(make, At(point, iteration, die), ends_by=Dead, **options)
    assert_equal_ends(unbroken, go_on(make, broken, **options))


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
def test_a_stopped_run_ends_like_the_unbroken_one(
    make, point, iteration, by_epoch
):
    options = dict(by_epoch=by_epoch, interval=4)
    unbroken = run(make, **options)
    broken = make(At(point, iteration, interrupt), **options)
    with pytest.raises(SystemExit) as left:
        broken.train()
    assert left.value.code == 128 + signal.SIGTERM
    last = Path(broken.work_dir, 'last_checkpoint').read_text()
    done = iteration + ('train' in point)
    assert read_checkpoint(last)['meta']['iter'] == done
    assert_equal_ends(unbroken, go_on(make, broken, **options))


def test_an_epoch_that_got_shorter_is_refused(make):
    stop = At('before_train_iter', 7, interrupt)
    stopped = run(make, stop, ends_by=SystemExit)
    with pytest.raises(UsageError, match='2 batches into .* now has 1'):
        go_on(make, stopped, train_dataloader=loader(batch_size=12))


def test_a_batch_too_small_for_a_norm_is_one_line(make):
    with pytest.raises(UsageError, match='train_dataloader.drop_last=True'):
        make(train_dataloader=loader(batch_size=1)).train()


def test_the_scale_of_mixed_precision_is_not_lost(make, amp_on_a_cpu):
    wrapper = dict(
        type='AmpOptimWrapper',
        loss_scale=dict(growth_interval=4),
        optimizer=dict(type='SGD', lr=0.4, momentum=0.9),
    )
    options = dict(optim_wrapper=wrapper)
    unbroken = run(make, **options)
    dies = At('before_train_iter', 7, die)
    broken = run(make, dies, ends_by=Dead, **options)
    assert_equal_ends(unbroken, go_on(make, broken, **options))


class TestFiles:
    """Checkpoints are whole or not there."""

    put = 'mmengine.fileio.backends.local_backend.LocalBackend.put'

    @pytest.mark.parametrize(
        ('error', 'told'),
        [(OSError('no space left'), UsageError), (Dead(), Dead)],
    )
    def test_a_write_that_fails_leaves_what_there_was(
        self, make, monkeypatch, error, told
    ):
        seen = []

        def write_half(backend, obj, filepath):
            Path(filepath).write_bytes(obj[: len(obj) // 2])
            seen.extend(os.listdir(os.path.dirname(filepath)))
            raise error

        def fail():
            monkeypatch.setattr(self.put, write_half)

        fails = At('before_save_checkpoint', 6, fail)
        runner = run(make, fails, ends_by=told)
        assert seen and 'epoch_2.pth' not in seen
        files = [n for n in os.listdir(runner.work_dir) if 'epoch' in n]
        assert files == ['epoch_1.pth']
        assert read_checkpoint(Path(runner.work_dir, 'epoch_1.pth'))

    def test_the_old_goes_after_the_new_is_there(self, make):
        seen = []

        class Watch(Hook):
            priority = 'HIGHEST'

            def before_save_checkpoint(self, runner, checkpoint):
                found = Path(runner.work_dir).glob('epoch_*.pth')
                seen.append(len(list(found)))

        runner = make(Watch())
        # Of another training.
        Path(runner.work_dir, 'epoch_9.pth').touch()
        runner.train()
        assert min(seen[3:]) == 2 + 1
        left = Path(runner.work_dir).glob('epoch_*.pth')
        assert sorted(int(p.stem[6:]) for p in left) == [3, 4, 9]

    def test_no_name_in_a_checkpoint_leads_out_of_the_folder(
        self, make, tmp_path
    ):
        """It may be a copy, or be made to have other files removed."""
        others = tmp_path / 'others'
        others.mkdir()
        names = ('best_tiny_mAP_epoch_2.pth', 'thesis', 'epoch_1.pth')
        for name in names:
            (others / name).touch()
        runner = make()
        thesis = Path(runner.work_dir, 'thesis.pth')
        thesis.touch()
        hub = runner.message_hub
        hub.update_info('best_ckpt', str(others / names[0]))
        hub.update_info('best_score', -1e9)
        hub.update_info('best_ckpt_other', str(thesis))
        hub.update_info('last_ckpt', '../..')
        hub.update_info('keep_ckpt_ids', ['/../others/epoch_1', 1, 2, 3])
        runner.train()
        assert thesis.is_file() and len(list(others.iterdir())) == 3
        best = Path(hub.get_info('best_ckpt'))
        assert str(best.parent) == runner.work_dir and best.is_file()

    def test_the_config_in_a_checkpoint_is_not_run(self, make, tmp_path):
        """mmengine executes ``meta['config']``, which mmcv 1.x wrote."""
        base = run(make)
        checkpoint = read_checkpoint(Path(base.work_dir, 'epoch_3.pth'))
        mark = tmp_path / 'mark'
        checkpoint['meta']['config'] = f'open({str(mark)!r}, "w")'
        torch.save(checkpoint, tmp_path / 'a.pth')
        make(load_from=str(tmp_path / 'a.pth'), resume=True).train()
        assert not mark.exists()


class TestOtherModels:
    @pytest.fixture
    def path(self, make):
        return str(Path(run(make).work_dir, 'epoch_3.pth'))

    @staticmethod
    def larger(width):
        model = RandomModel(width)
        model.added = nn.Linear(2, 2)
        return model

    def test_a_resumed_run_and_a_test_refuse_them(self, make, path):
        words = r'fc.weight is \(3, 4\) in the checkpoint and \(3, 5\) in the'
        with pytest.raises(UsageError, match=words):
            make(load_from=path, resume=True, model=RandomModel(5)).train()
        runner = make(load_from=path, model=self.larger(4))
        runner.strict = True
        with pytest.raises(UsageError, match='added.weight is not in .*1 mor'):
            runner.test()

    def test_a_training_tells_what_it_takes(self, make, path):
        model = self.larger(5)
        model.bn.requires_grad_(False)
        runner = make(model=model)
        told = []
        runner.logger.warning = told.append
        runner.call_hook('before_run')
        runner.load_checkpoint(path)
        (table,) = [t for t in told if 'not in it' in t]
        rows = [re.split(r'[ |]+', t)[1:-1] for t in table.splitlines()[3:-1]]
        assert rows[:3] == [
            ['fc', '1', '1', '0', '0', '0'],
            ['bn', '5', '0', '0', '0', '2'],
            ['added', '0', '0', '2', '0', '0'],
        ]
        assert rows[3:] == [] and 'fc.weight' in table.splitlines()[-1]

    def test_one_with_nothing_that_fits_is_refused(self, make, tmp_path):
        path = tmp_path / 'a.pth'
        torch.save(dict(state_dict=dict(a=torch.ones(1))), path)
        with pytest.raises(UsageError, match='of another model'):
            make(load_from=str(path)).train()

    def test_a_checkpoint_of_another_runner_goes_on(self, make, make_runner):
        other = make_runner(
            epochs=1,
            model=RandomModel(),
            train_dataloader=loader(),
            val_dataloader=None,
            val_cfg=None,
            val_evaluator=None,
        )
        other.train()
        assert go_on(make, other).iter == EPOCHS * EPOCH_LENGTH


@HOOKS.register_module()
class OwnCheckpointHook(CheckpointHook):
    pass


@pytest.mark.parametrize(
    ('kind', 'expected'),
    [
        ('CheckpointHook', 'SafeCheckpointHook'),
        ('mmengine.CheckpointHook', 'SafeCheckpointHook'),
        (CheckpointHook, 'SafeCheckpointHook'),
        (OwnCheckpointHook, 'OwnCheckpointHook'),
    ],
)
def test_every_config_gets_our_hooks_and_keeps_its_own(make, kind, expected):
    """Also pure-Python ones, whose types are classes."""
    saving = dict(type=kind, interval=7)
    runner = make(default_hooks=dict(checkpoint=saving, non_finite=None))
    kinds = {type(hook).__name__: hook for hook in runner.hooks}
    assert kinds[expected].interval == 7
    assert {'ResumeHook', 'InterruptionHook'} <= set(kinds)
    assert not {'CheckpointHook', 'NonFiniteHook'} & set(kinds)


class TestTakeCheckpoint:
    """Which one a training goes on from."""

    @staticmethod
    def save(path, age, **content):
        content = dict(state_dict={}, message_hub={}) | content
        torch.save(dict(meta=dict(seed=7, epoch=1, iter=1)) | content, path)
        os.utime(path, (1_700_000_000 - age,) * 2)

    @pytest.fixture
    def cfg(self, tmp_path):
        """A work folder with three checkpoints, of which one is named."""
        for epoch in (1, 2, 3):
            self.save(tmp_path / f'epoch_{epoch}.pth', age=10 - epoch)
        # Of no use for going on.
        self.save(tmp_path / 'best_score_epoch_3.pth', age=0)
        self.save(tmp_path / '.epoch_4.123.pth', age=0)
        (tmp_path / 'last_checkpoint').write_text('/moved/run/epoch_3.pth')
        return Config(dict(work_dir=str(tmp_path)))

    def taken(self, cfg, resume='auto'):
        take_checkpoint(cfg, resume)
        return Path(cfg.load_from).name

    def test_the_named_one_is_the_newest(self, cfg, tmp_path):
        self.save(tmp_path / 'epoch_1.pth', age=0)
        assert self.taken(cfg) == 'epoch_3.pth'
        (tmp_path / 'last_checkpoint').unlink()
        assert self.taken(cfg) == 'epoch_1.pth'

    @pytest.mark.parametrize('content', [b'', b'PK\x03\x04 no zip'])
    def test_a_damaged_one_gives_way_to_the_one_before(
        self, cfg, tmp_path, content, capsys
    ):
        (tmp_path / 'epoch_3.pth').write_bytes(content)
        assert self.taken(cfg) == 'epoch_2.pth'
        assert 'epoch_3.pth cannot be read' in capsys.readouterr().err

    def test_nothing_readable_is_an_error_that_names_all(self, cfg, tmp_path):
        for epoch in (1, 2, 3):
            (tmp_path / f'epoch_{epoch}.pth').write_bytes(b'a')
        with pytest.raises(UsageError) as error:
            take_checkpoint(cfg, 'auto')
        for epoch in (1, 2, 3):
            assert f'epoch_{epoch}.pth cannot' in str(error.value)

    def test_an_empty_folder_is_a_beginning(self, tmp_path):
        cfg = Config(dict(work_dir=str(tmp_path), load_from=None, resume=True))
        assert take_checkpoint(cfg, None) is None
        assert (cfg.resume, cfg.load_from) == (False, None)
        cfg = Config(dict(work_dir=str(tmp_path), load_from='a.pth'))
        assert take_checkpoint(cfg, 'auto') is None
        assert (cfg.resume, cfg.load_from) == (False, 'a.pth')

    def test_the_seed_of_the_run_comes_before_its_data(self, cfg):
        cfg.randomness = dict(deterministic=True)
        take_checkpoint(cfg, 'auto')
        assert cfg.randomness == dict(deterministic=True, seed=7)

    @pytest.mark.parametrize('meta', [None, [], 1])
    def test_what_is_none_of_a_training_is_refused(self, cfg, tmp_path, meta):
        self.save(tmp_path / 'a.pth', age=0, meta=meta)
        with pytest.raises(UsageError, match='a.pth is not a checkpoint'):
            take_checkpoint(cfg, str(tmp_path / 'a.pth'))

    def test_a_folder_of_its_own_is_looked_into(self, tmp_path):
        (tmp_path / 'large' / 'run').mkdir(parents=True)
        self.save(tmp_path / 'large' / 'run' / 'e2.pth', age=1)
        hook = dict(out_dir=str(tmp_path / 'large'), filename_tmpl='e{}.pth')
        cfg = dict(default_hooks=dict(checkpoint=hook))
        cfg['work_dir'] = str(tmp_path / 'run')
        assert self.taken(Config(cfg)) == 'e2.pth'

    def test_processes_started_again_go_on(self, cfg, monkeypatch):
        assert take_checkpoint(cfg, None) is None
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
        assert self.taken(cfg, None) == 'epoch_3.pth'


class Draws(Dataset):
    """Of each sample its index, and a draw from each generator."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        time.sleep(0.01)
        draws = random.random(), np.random.rand(), torch.rand(()).item()
        return index, *draws


def collate(samples):
    return [*samples, np.random.rand()]


@pytest.mark.parametrize('sampler', [InfiniteSampler, DefaultSampler])
def test_batches_follow_from_their_number(sampler):
    def batches(count, workers, number=0, skip=0):
        dataset = Draws()
        loader = DataLoader(
            dataset,
            batch_size=2,
            sampler=sampler(dataset, seed=3),
            num_workers=workers,
            collate_fn=collate,
        )
        number_batches(loader, (5, 0))
        loader.batch_sampler.number = number
        loader.batch_sampler.skip = skip
        iterator = iter(loader)
        return [next(iterator) for _ in range(count)]

    one = batches(3, workers=0)
    torch.rand(9), np.random.rand(9), random.random()
    assert batches(3, workers=2) == one
    assert batches(1, workers=0, number=2, skip=2) == one[2:]
    draws = [sample[1:] for batch in one for sample in batch[:2]]
    assert len(set(draws)) == 6


class TestSignals:
    @pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def number(self, request):
        """A signal that is not ignored, as nohup has it."""
        inherited = signal.signal(request.param, signal.SIG_DFL)
        yield request.param
        signal.signal(request.param, inherited)

    def test_the_first_is_a_request(self, number, capsys):
        with stopping_in_order():
            assert requested_signal() == 0
            os.kill(os.getpid(), number)
            assert requested_signal() == number
        assert requested_signal() == 0
        assert signal.getsignal(number) is signal.SIG_DFL
        assert 'once more to end at once' in capsys.readouterr().err

    def test_the_second_ends_at_once(self):
        code = (
            'import os, signal, time\n'
            'from anchorformer_mm.engine.resume import stopping_in_order\n'
            'with stopping_in_order():\n'
            '    os.kill(os.getpid(), signal.SIGTERM)\n'
            '    print("still here", flush=True)\n'
            '    os.kill(os.getpid(), signal.SIGTERM)\n'
            '    time.sleep(60)\n'
        )
        out = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True
        )
        assert out.returncode == -signal.SIGTERM, out.stderr
        assert out.stdout == 'still here\n'

    def test_what_nohup_has_ignored_stays_ignored(self):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with stopping_in_order():
                os.kill(os.getpid(), signal.SIGHUP)
                assert requested_signal() == 0
        finally:
            signal.signal(signal.SIGHUP, before)

    def test_no_sigterm_of_a_child_is_lost(self):
        """As those of a pool that ends: it would wait for ever."""
        with stopping_in_order():
            for _ in range(20):
                child = os.fork()
                if not child:
                    time.sleep(10)
                    os._exit(0)
                os.kill(child, signal.SIGTERM)
                status = os.waitpid(child, 0)[1]
                assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
            assert requested_signal() == 0
            # Still for this process.
            os.kill(os.getpid(), signal.SIGTERM)
            assert requested_signal() == signal.SIGTERM

    @pytest.fixture
    def batches(self, make):
        samples = loader(batch_size=1) | dict(num_workers=1, dataset=Draws())
        samples['collate_fn'] = dict(type='default_collate')
        return make(train_dataloader=samples).train_dataloader

    def test_workers_finish_when_the_whole_group_is_asked(self, batches):
        with stopping_in_order():
            batches = iter(batches)
            (worker,) = batches._workers
            seen = [next(batches)]
            # As scancel does.
            for pid in (worker.pid, os.getpid()):
                subprocess.run(['kill', '-TERM', str(pid)], check=True)
            seen += batches
            assert requested_signal() == signal.SIGTERM
        assert sorted(int(batch[0]) for batch in seen) == list(range(6))
        worker.join(10)
        assert worker.exitcode == 0

    def test_a_worker_ends_when_its_trainer_says_so(self, batches):
        """Once: multiprocessing says it once, and waits for ever."""
        batches = iter(batches)
        (worker,) = batches._workers
        next(batches)
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 0


@pytest.mark.parametrize(
    ('epochs', 'words'),
    [
        (EPOCHS, 'nothing to do: 4 of 4 epochs'),
        (EPOCHS + 1, 'the rate stays at 0.4'),
    ],
)
def test_a_finished_run_that_is_resumed_says_what_is_left(make, epochs, words):
    rising = dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=12)
    finished = run(make, param_scheduler=[rising])
    cfg = Config(dict(work_dir=finished.work_dir))
    runner = make(
        checkpoint=take_checkpoint(cfg, 'auto'),
        param_scheduler=[rising],
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=2),
        **cfg,
    )
    told = []
    runner.logger.warning = told.append
    runner.train()
    assert sum(words in line for line in told) == 1


class Unreadable(RandomData):
    """Raises what a decoder does, which does not name the file."""

    def get_data_info(self, index):
        return dict(img_path=str(self.path), seg_map_path=None)

    def __getitem__(self, index):
        raise ValueError('no bytes')


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_cannot_be_read_is_named(make, workers, tmp_path):
    data = Unreadable()
    data.path = tmp_path / 'empty.jpg'
    data.path.touch()
    loading = loader() | dict(dataset=data, num_workers=workers)
    with pytest.raises(UsageError, match=r'read: \S+empty\.jpg$'):
        make(train_dataloader=loading).train()
    if not workers:
        # Another error is the code's.
        cv2.imwrite(str(data.path), np.zeros((2, 2, 3), np.uint8))
        with pytest.raises(ValueError, match='no bytes'):
            make(train_dataloader=loading).train()
