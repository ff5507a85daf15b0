"""The first signal is a request, the second an end."""

import os
import signal
import subprocess
import sys

import pytest

from anchorformer_mm.engine.resuming.interruption import (
    ending_in_order,
    requested_signal,
)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request(number, capsys):
    before = signal.getsignal(number)
    with ending_in_order():
        assert requested_signal() == 0
        os.kill(os.getpid(), number)
        assert requested_signal() == number
    assert requested_signal() == 0
    assert signal.getsignal(number) is before
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
