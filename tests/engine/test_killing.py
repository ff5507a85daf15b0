"""Whether a training was killed, or had ended before."""

import os
import subprocess
import time

import pytest
from mmengine.config import Config

from anchorformer_mm.engine import launch
from anchorformer_mm.engine.resuming import killing
from anchorformer_mm.engine.resuming.killing import Training


def test_one_of_several_is_killed_and_torchrun_starts_all_again(
    tmp_path, monkeypatch
):
    def train(cfg, mode):
        if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':
            time.sleep(60)

    monkeypatch.setattr(launch, 'run', train)
    training = Training(Config(), tmp_path / 'output.log', processes=2)
    moment = training.kill_when(lambda: all(killing._trainers[:2]), rank=1)
    assert moment == 'setting up, iteration 0, process 1'
    training.wait()


def test_one_that_has_ended_but_is_not_reaped_is_not_killed(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(launch, 'run', lambda cfg, mode: time.sleep(1))
    with subprocess.Popen(['true']) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        training = Training(Config(), tmp_path / 'output.log', processes=2)

        def reached():
            if all(started := killing._trainers[:2]):
                killing._trainers[1] = ended.pid
            return all(started)

        assert training.kill_when(reached, rank=1) is None
    assert training.wait()


def test_one_that_waits_for_the_others_ends_is_not_killed(
    tmp_path, monkeypatch
):
    def train(cfg, mode):
        if os.environ['RANK'] == '0':
            time.sleep(60)

    monkeypatch.setattr(launch, 'run', train)
    training = Training(Config(), tmp_path / 'output.log', processes=2)
    assert training.kill_when(lambda: killing._trained[1], rank=1) is None
    assert not training.process.is_alive()


@pytest.mark.parametrize('processes', [1, 2])
def test_one_that_fails_before_its_moment_raises(
    tmp_path, monkeypatch, capfd, processes
):
    def fail(cfg, mode):
        raise ValueError('of its own')

    monkeypatch.setattr(launch, 'run', fail)
    with capfd.disabled():
        # What is captured is not written to the log.
        training = Training(Config(), tmp_path / 'output.log', processes)
    with pytest.raises(
        RuntimeError, match='ended with 1:\n(.*\n)*.*of its own'
    ):
        training.kill_when(lambda: False)


def test_one_that_ends_before_its_moment_is_not_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, 'run', lambda cfg, mode: None)
    training = Training(Config(), tmp_path / 'output.log')
    assert training.kill_when(lambda: False) is None
