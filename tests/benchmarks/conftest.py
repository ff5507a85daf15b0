"""The scripts as modules, and as command lines in this process."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from anchorformer_mm.utils.errors import run_command_line

ROOT = Path(__file__).parents[2]
# The scripts import each other as they do when one is run.
sys.path.insert(0, str(ROOT / 'benchmarks'))


@pytest.fixture
def run_script(capfd, monkeypatch, tmp_path):
    """Run a script in an empty folder; gives status, output, errors."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def call(name, *args):
        script = importlib.import_module(name)
        status = 0
        try:
            run_command_line(lambda: script.main([str(a) for a in args]))
        except SystemExit as end:
            status = end.code
        printed = capfd.readouterr()
        return status, printed.out, printed.err

    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def quick(monkeypatch):
    """Memory without the processes, which take seconds to start."""
    for name in ('latency', 'attentions'):
        monkeypatch.setattr(f'{name}.peak_memory', lambda *_: 2**20)
