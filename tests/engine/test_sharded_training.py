"""Trainings in shards, of two processes of torchrun without GPUs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from anchorformer_mm.engine.strategies import (
    ShardedStrategy,
    StrategyRunner,
    ZeroStrategy,
)
from anchorformer_mm.models import AnchorFormer
from anchorformer_mm.utils.checkpoint import admit_mmengine_checkpoints
from anchorformer_mm.utils.errors import UsageError

WORKER = Path(__file__).with_name('sharded_worker.py')


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def train(folder, *names):
    command = [sys.executable, '-m', 'torch.distributed.run']
    command += ['--nproc_per_node=2', f'--master_port={free_port()}', WORKER]
    done = subprocess.run(
        [*map(str, command), str(folder)]
        + [f'{name}:{free_port()}' for name in names],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | dict(OMP_NUM_THREADS='1'),
    )
    assert done.returncode == 0, done.stderr[-3000:]


def read(path):
    admit_mmengine_checkpoints()
    return torch.load(path, weights_only=True)


def distance(a, b):
    a, b = (read(path)['state_dict'] for path in (a, b))
    assert list(a) == list(b)
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.fixture(scope='module')
def out(tmp_path_factory):
    """Trained plainly, in shards, and resumed after the first epoch."""
    folder = tmp_path_factory.mktemp('sharded')
    train(folder, 'plain', 'fsdp', 'fsdp_resumed')
    return folder


def test_shards_train_to_the_weights_of_the_plain_training(out):
    """With clipping, groups of parameters and a schedule."""
    for epoch in ('epoch_1.pth', 'epoch_2.pth'):
        assert distance(out / 'plain' / epoch, out / 'fsdp' / epoch) < 1e-5
    plain = out / 'plain'
    assert distance(plain / 'epoch_1.pth', plain / 'epoch_2.pth') > 0.1


def test_each_process_holds_its_share_and_clips_by_the_whole_norm(out):
    plain, sharded = (
        json.loads((out / f'{name}.json').read_text())
        for name in ('plain', 'fsdp')
    )
    assert sharded['numbers'] == pytest.approx(plain['numbers'] / 2, rel=0.01)
    # Two blocks, and what is around them.
    assert sharded['units'] == 3
    assert sharded['norms'] == pytest.approx(plain['norms'], rel=1e-5)
    assert min(plain['norms']) > 0.5


def test_a_checkpoint_of_shards_is_one_of_the_plain_model(out):
    checkpoint = read(out / 'fsdp' / 'epoch_2.pth')
    meta = checkpoint['meta']
    assert (meta['epoch'], meta['iter']) == (2, 4)
    state = checkpoint['state_dict']
    plain = read(out / 'plain' / 'epoch_2.pth')['state_dict']
    assert state._metadata == plain._metadata
    # Of another grid: needs the metadata of this one, which is not square.
    arch = dict(embed_dims=32, num_layers=2, num_heads=2)
    model = torch.nn.Module()
    model.backbone = AnchorFormer(
        arch | dict(feedforward_channels=64),
        img_size=(24, 32),
        patch_size=8,
        num_anchors=3,
    )
    model.fc = torch.nn.Linear(32, 4)
    model.load_state_dict(state)
    assert model.backbone.pos_embed.shape == (1, 13, 32)


def test_a_best_checkpoint_does_not_count_an_epoch_too_many(out):
    for name, epoch in (('epoch_1.pth', 1), ('best_count_epoch_1.pth', 1)):
        meta = read(out / 'fsdp' / name)['meta']
        assert (meta['epoch'], meta['iter']) == (epoch, 2)


def test_resumed_shards_end_like_unbroken_ones(out):
    unbroken, resumed = (
        out / name / 'epoch_2.pth' for name in ('fsdp', 'fsdp_resumed')
    )
    assert distance(unbroken, resumed) == 0
    ends = [read(path)['optimizer'] for path in (unbroken, resumed)]
    assert ends[0]['param_groups'] == ends[1]['param_groups']
    assert ends[0]['state'].keys() == ends[1]['state'].keys()
    for name, state in ends[0]['state'].items():
        other = ends[1]['state'][name]['momentum_buffer']
        assert torch.equal(state['momentum_buffer'], other)
    # It did the second epoch, and no more.
    told = json.loads((out / 'fsdp_resumed.json').read_text())
    assert len(told['norms']) == 2


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make a strategy for one process of torchrun, which is this one."""
    place = dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1')
    place |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    dist.init_process_group('gloo')

    def build(kind=ShardedStrategy, launcher='pytorch', **more):
        return kind(
            work_dir=str(tmp_path),
            env_kwargs=dict(launcher=launcher),
            log_kwargs=dict(log_level='ERROR'),
            **more,
        )

    yield build
    dist.destroy_process_group()


def test_shards_need_a_launcher(make):
    with pytest.raises(UsageError, match='ShardedStrategy needs a launcher'):
        make(launcher='none')


def test_shards_need_the_plain_parameters(make):
    with pytest.raises(ValueError, match='use_orig_params must be True'):
        make(model_wrapper=dict(use_orig_params=False))


def test_blocks_are_classes_of_the_model(make):
    strategy = make(blocks=('Conv2d',))
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"Linear.*got \('Conv2d',\)"):
        strategy.prepare(model)


@pytest.mark.parametrize('hook', ['EMAHook', 'ChannelsLastHook'])
def test_hooks_that_want_the_whole_model_are_refused(make, hook, tmp_path):
    scope = '' if hook == 'EMAHook' else 'anchorformer_mm.'
    with pytest.raises(UsageError, match=f'^{hook} works on whole models'):
        StrategyRunner(
            model=torch.nn.Linear(2, 2),
            work_dir=str(tmp_path),
            strategy=make(),
            custom_hooks=[dict(type=scope + hook)],
            launcher='pytorch',
        )


@pytest.fixture(scope='module')
def zero(tmp_path_factory):
    """Trained plainly, and with ZeRO; then resumed after the first epoch."""
    pytest.importorskip('deepspeed', reason='deepspeed is not installed')
    folder = tmp_path_factory.mktemp('zero')
    name = 'deepspeed_zero2'
    train(folder, 'plain', name, f'{name}_resumed')
    return folder


def test_zero_trains_to_the_weights_of_the_plain_training(zero):
    best = 'best_count_epoch_1.pth'
    assert distance(zero / 'plain' / best, zero / 'deepspeed_zero2' / best) < (
        1e-5
    )


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (dict(type='AmpOptimWrapper'), "type.*got 'AmpOptimWrapper'"),
        (dict(accumulative_counts=2), "must not have .*'accumulative_counts'"),
        (dict(clip_grad=dict(type='value', clip_value=1)), 'clip_grad.*value'),
    ],
)
def test_zero_refuses_what_it_does_itself(make, more, message):
    pytest.importorskip('deepspeed', reason='deepspeed is not installed')
    strategy = make(ZeroStrategy, config={})
    wrapper = dict(optimizer=dict(type='SGD', lr=0.1)) | more
    with pytest.raises(ValueError, match=message):
        strategy.build_optim_wrapper(wrapper, torch.nn.Linear(2, 2))


def test_zero_does_not_pass_over_plain_weights(make, tmp_path):
    pytest.importorskip('deepspeed', reason='deepspeed is not installed')
    strategy = make(ZeroStrategy, config={})
    for load in (strategy.load_checkpoint, strategy.resume):
        with pytest.raises(UsageError, match='loads folders.*plain.pth'):
            load(str(tmp_path / 'plain.pth'))


def test_resumed_zero_ends_like_an_unbroken_one(zero):
    weights = []
    for name in ('deepspeed_zero2', 'deepspeed_zero2_resumed'):
        folder = zero / name / 'epoch_2.pth'
        weights.append(read(folder / 'mp_rank_00_model_states.pt')['module'])
    plain = read(zero / 'plain' / 'epoch_2.pth')['state_dict']
    for name, value in plain.items():
        assert torch.equal(weights[0][name], weights[1][name])
        assert torch.allclose(weights[0][name], value, atol=1e-5)
