"""Two processes of torchrun without GPUs, against one."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

WORKER = Path(__file__).with_name('distributed_worker.py')


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def torchrun(*args):
    command = [sys.executable, '-m', 'torch.distributed.run']
    command += ['--nproc_per_node=2', f'--master_port={free_port()}', WORKER]
    return subprocess.run(
        [*map(str, command), 'pytorch', *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | dict(OMP_NUM_THREADS='1'),
    )


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    """What a run of two processes told."""
    out = tmp_path_factory.mktemp('distributed') / 'two.json'
    done = torchrun(2, 'frozen', out)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """What one process tells, which is this one."""

    def run(norm, launcher='none'):
        out = tmp_path / 'alone.json'
        # The run sets it.
        monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
        args = ['worker.py', launcher, '4', norm, str(out)]
        monkeypatch.setattr(sys, 'argv', args)
        runpy.run_path(str(WORKER))
        return json.loads(out.read_text())

    return run


def test_two_processes_have_the_losses_of_one(alone, two):
    """For the same global batch, with batch statistics fixed."""
    losses = alone('frozen')['losses']
    assert len(losses) == 6
    assert two['losses'] == pytest.approx(losses, rel=1e-5)
    assert losses[0] != pytest.approx(losses[-1], rel=1e-2)


def test_every_image_is_evaluated_once(two):
    """Five images are uneven shards of two processes."""
    assert sorted(two['seen']) == list(range(5))


def test_one_process_has_no_synchronised_norms(alone):
    told = alone('sync')
    assert told['norms'] and 'SyncBatchNorm' not in told['norms']


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm'])
def test_processes_without_gpus_have_no_synchronised_norms(
    alone, monkeypatch, tmp_path, launcher
):
    port = dict(MASTER_PORT=str(free_port()))
    place = dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1')
    place['MASTER_ADDR'] = '127.0.0.1'
    # What is set is gone afterwards.
    for name, value in (place | port).items():
        monkeypatch.setenv(name, value)
    if launcher == 'slurm':
        scontrol = tmp_path / 'scontrol'
        scontrol.write_text('#!/bin/sh\necho 127.0.0.1\necho other\n')
        scontrol.chmod(0o755)
        path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
        told = dict(NODELIST='a[1-2]', PROCID='0', LOCALID='0', NTASKS='1')
        for name in place:
            monkeypatch.delenv(name)
        for name, value in told.items():
            monkeypatch.setenv(f'SLURM_{name}', value)
        monkeypatch.setenv('PATH', path)
    try:
        told = alone('sync', launcher)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    assert told['norms'] and 'SyncBatchNorm' not in told['norms']
