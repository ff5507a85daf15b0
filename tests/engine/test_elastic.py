"""Jobs of torchrun that are started again."""

import os

import pytest
import torch
from mmengine.config import Config

from anchorformer_mm.engine.resuming.elastic import beginning, mark_beginning
from anchorformer_mm.engine.safe_training import find_resume_point


@pytest.fixture
def process(monkeypatch):
    """Be a process of a job, as torchrun tells it."""

    def be(restarts=0, rank=0, job='job', max_restarts=2):
        told = dict(RANK=rank, TORCHELASTIC_RUN_ID=job)
        told |= dict(TORCHELASTIC_RESTART_COUNT=restarts)
        told |= dict(TORCHELASTIC_MAX_RESTARTS=max_restarts)
        for name, value in told.items():
            monkeypatch.setenv(name, str(value))

    return be


def save(path, age):
    meta = dict(seed=7, epoch=1, iter=1)
    torch.save(dict(meta=meta, state_dict={}, message_hub={}), path)
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))
    return str(path)


def config(folder, **given):
    return Config(dict(work_dir=str(folder), **given))


def begin(folder, process):
    process()
    assert beginning(folder) is None
    mark_beginning(folder)
    process(restarts=1)


def test_a_job_goes_on_from_what_it_has_written(tmp_path, process):
    begin(tmp_path, process)
    path = save(tmp_path / 'epoch_1.pth', age=-60)
    cfg = config(tmp_path, load_from='weights.pth')
    assert find_resume_point(cfg).seed == 7
    assert (cfg.resume, cfg.load_from) == (True, path)


def test_a_job_that_has_written_nothing_begins_as_it_did(tmp_path, process):
    old = save(tmp_path / 'epoch_9.pth', age=60)
    begin(tmp_path, process)
    cfg = config(tmp_path, load_from='weights.pth')
    assert find_resume_point(cfg) is None
    assert (cfg.get('resume'), cfg.load_from) == (None, 'weights.pth')
    # Begun with --resume, or with --resume CHECKPOINT.
    for given in (dict(), dict(load_from=old)):
        cfg = config(tmp_path, resume=True, **given)
        find_resume_point(cfg)
        assert (cfg.resume, cfg.load_from) == (True, old)


def test_later_checkpoints_precede_the_one_it_began_with(tmp_path, process):
    given = save(tmp_path / 'epoch_1.pth', age=60)
    begin(tmp_path, process)
    newer = save(tmp_path / 'epoch_2.pth', age=-60)
    cfg = config(tmp_path, resume=True, load_from=given)
    find_resume_point(cfg)
    assert cfg.load_from == newer


def test_what_another_job_left_does_not_count(tmp_path, process):
    begin(tmp_path, process)
    save(tmp_path / 'epoch_1.pth', age=0)
    # Its first processes died before they could say that it had begun.
    process(restarts=1, job='another')
    cfg = config(tmp_path)
    assert find_resume_point(cfg) is None
    mark_beginning(tmp_path)
    began = beginning(tmp_path)
    assert began is not None
    # Told once, however often it is started again.
    process(restarts=2, job='another')
    mark_beginning(tmp_path)
    assert beginning(tmp_path) == began


def test_only_the_first_process_of_a_job_that_may_restart_writes(
    tmp_path, process, monkeypatch
):
    process(rank=1)
    mark_beginning(tmp_path)
    process(max_restarts=0)
    mark_beginning(tmp_path)
    for name in list(os.environ):
        if name.startswith('TORCHELASTIC'):
            monkeypatch.delenv(name)
    mark_beginning(tmp_path)
    assert not list(tmp_path.iterdir())
