"""What a work folder knows of its trainings."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config

from anchorformer_mm.engine.resuming.work_folder import (
    last_beginning,
    lock,
    mark_beginning,
)
from anchorformer_mm.engine.safe_training import _enter, find_resume_point
from anchorformer_mm.utils.errors import UsageError


def save(path, age):
    meta = dict(seed=7, epoch=1, iter=1)
    torch.save(dict(meta=meta, state_dict={}, message_hub={}), path)
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))
    return str(path)


def config(folder, **given):
    return Config(dict(work_dir=str(folder), **given))


class TestJobsOfTorchrun:
    """Whose processes are started again."""

    @pytest.fixture
    def process(self, monkeypatch):
        """Be a process of a job, as torchrun tells it."""

        def be(restarts=0, job='job'):
            told = dict(TORCHELASTIC_RUN_ID=job)
            told |= dict(TORCHELASTIC_RESTART_COUNT=str(restarts))
            for name, value in told.items():
                monkeypatch.setenv(name, value)

        return be

    def begin(self, folder, process, **given):
        process()
        _enter(config(folder, **given))
        process(restarts=1)

    def test_one_goes_on_from_what_it_has_written(self, tmp_path, process):
        self.begin(tmp_path, process)
        path = save(tmp_path / 'epoch_1.pth', age=-60)
        cfg = config(tmp_path, load_from='weights.pth')
        assert _enter(cfg).seed == 7
        assert (cfg.resume, cfg.load_from) == (True, path)

    def test_one_that_has_written_nothing_begins(self, tmp_path, process):
        save(tmp_path / 'epoch_9.pth', age=60)
        self.begin(tmp_path, process)
        cfg = config(tmp_path, load_from='weights.pth')
        assert _enter(cfg) is None
        assert (cfg.get('resume'), cfg.load_from) == (None, 'weights.pth')

    def test_one_that_went_on_goes_on(self, tmp_path, process):
        old = save(tmp_path / 'epoch_9.pth', age=60)
        for given in (dict(), dict(load_from=old)):
            self.begin(tmp_path, process, resume=True, **given)
            cfg = config(tmp_path, resume=True, **given)
            _enter(cfg)
            assert (cfg.resume, cfg.load_from) == (True, old)

    def test_later_checkpoints_precede_the_given_one(self, tmp_path, process):
        given = dict(load_from=save(tmp_path / 'epoch_1.pth', age=60))
        self.begin(tmp_path, process, resume=True, **given)
        newer = save(tmp_path / 'epoch_2.pth', age=-60)
        for restarts in (1, 2):
            process(restarts)
            cfg = config(tmp_path, resume=True, **given)
            _enter(cfg)
            assert cfg.load_from == newer

    def test_what_another_one_left_does_not_count(self, tmp_path, process):
        self.begin(tmp_path, process)
        save(tmp_path / 'epoch_1.pth', age=0)
        # Its first processes died before they could say that it had begun.
        process(restarts=1, job='another')
        assert _enter(config(tmp_path)) is None
        assert last_beginning(tmp_path).is_ours


def test_an_older_training_is_not_taken_for_the_last_one(tmp_path):
    old = save(tmp_path / 'epoch_4.pth', age=60)
    _enter(config(tmp_path))
    # Which was killed before its first checkpoint.
    with pytest.raises(UsageError, match='has saved nothing') as error:
        find_resume_point(config(tmp_path, resume=True))
    assert f'--resume {old}' in str(error.value)
    assert find_resume_point(config(tmp_path, resume=True, load_from=old))
    new = save(tmp_path / 'epoch_1.pth', age=-60)
    assert str(find_resume_point(config(tmp_path, resume=True)).path) == new


def test_a_copied_folder_goes_on(tmp_path):
    run = tmp_path / 'run'
    _enter(config(run))
    save(run / 'epoch_1.pth', age=-1)
    copied = tmp_path / 'copy'
    copied.mkdir()
    # As cp -r, in any order.
    for path in sorted(run.iterdir(), reverse=True):
        shutil.copyfile(path, copied / path.name)
    assert find_resume_point(config(copied, resume=True)) is not None


def test_damaged_and_absent_marks_are_none(tmp_path):
    assert last_beginning(tmp_path) is None
    mark_beginning(tmp_path)
    assert last_beginning(tmp_path) is not None
    (tmp_path / '.beginning').write_text('')
    assert last_beginning(tmp_path) is None


CODE = """
import sys, time
from pathlib import Path
from anchorformer_mm.engine.resuming.work_folder import lock
lock(Path(sys.argv[1]))
print('locked', flush=True)
time.sleep(60)
"""


def test_a_folder_has_one_training_until_it_ends(tmp_path):
    command = [sys.executable, '-c', CODE, str(tmp_path)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == 'locked\n'
        with pytest.raises(UsageError, match='another training writes to'):
            lock(tmp_path)
    finally:
        other.kill()
        other.communicate()
    lock(tmp_path)
    # Also when it goes on in the same process.
    lock(tmp_path)
