"""The command lines, called as a user does, but in this process."""

import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.fixture
def run_tool(monkeypatch, capfd):
    """Run a tool, named under tools/; gives status, output, errors."""

    def call(tool, *args):
        path = str(TOOLS / tool)
        monkeypatch.setattr(sys, 'argv', [path, *args])
        status = 0
        try:
            runpy.run_path(path, run_name='__main__')
        except SystemExit as end:
            status = end.code
        printed = capfd.readouterr()
        return status, printed.out, printed.err.splitlines()

    return call
