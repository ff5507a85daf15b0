"""The first signal is a request, the second an end."""

import os
import signal
import subprocess
import sys
import time

import pytest
from torch.utils.data import DataLoader, Dataset

from anchorformer_mm.engine.resuming.data_order import number_batches
from anchorformer_mm.engine.resuming.interruption import (
    ending_in_order,
    requested_signal,
)


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def number(request):
    """A signal that is not ignored, as nohup has it."""
    inherited = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, inherited)


def test_the_first_signal_is_a_request(number, capsys):
    with ending_in_order():
        assert requested_signal() == 0
        os.kill(os.getpid(), number)
        assert requested_signal() == number
    assert requested_signal() == 0
    assert signal.getsignal(number) is signal.SIG_DFL
    assert 'once more to end at once' in capsys.readouterr().err


CODE = """
import os, signal, time
from anchorformer_mm.engine.resuming.interruption import ending_in_order
with ending_in_order():
    child = os.fork()
    if not child:
        time.sleep(60)
    time.sleep(0.2)
    os.kill(child, signal.SIGINT)
    time.sleep(0.2)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -15
    os.kill(os.getpid(), signal.SIGTERM)
    print('still here', flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


def test_workers_end_on_sigterm_and_the_second_signal_ends_at_once():
    out = subprocess.run(
        [sys.executable, '-c', CODE], capture_output=True, text=True
    )
    assert out.returncode == -signal.SIGTERM, out.stderr
    assert out.stdout == 'still here\n'


def test_what_nohup_has_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_in_order():
            os.kill(os.getpid(), signal.SIGHUP)
            assert requested_signal() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


class Slow(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        time.sleep(0.1)
        return index


def test_workers_finish_when_the_whole_group_is_asked_to_end():
    loader = DataLoader(Slow(), num_workers=1)
    number_batches(loader, seed=0, rank=0)
    with ending_in_order():
        batches = iter(loader)
        (worker,) = batches._workers
        seen = [next(batches)]
        # As scancel and torchrun do.
        for pid in (worker.pid, os.getpid()):
            subprocess.run(['kill', '-TERM', str(pid)], check=True)
        seen += batches
        assert requested_signal() == signal.SIGTERM
    assert [int(batch) for batch in seen] == [0, 1, 2, 3]
    worker.join(10)
    assert worker.exitcode == 0


def test_a_worker_ends_when_its_trainer_says_so():
    """Once: multiprocessing says it once, and waits for ever."""
    loader = DataLoader(Slow(), num_workers=1)
    number_batches(loader, seed=0, rank=0)
    batches = iter(loader)
    (worker,) = batches._workers
    next(batches)
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
