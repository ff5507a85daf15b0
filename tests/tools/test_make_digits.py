"""The command that makes the embedded data set."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools/dataset_converters/make_digits.py'
TINY = ('--num-train', '2', '--num-val', '1', '--scene-size', '80', '64')


COMMAND = [sys.executable, str(TOOL)]
ENVIRONMENT = os.environ | {'PYTHONPATH': str(ROOT)}


def run(*arguments, command=COMMAND) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=ENVIRONMENT,
        text=True,
        capture_output=True,
        timeout=60,
    )


def test_writes_once_then_says_that_it_is_there(tmp_path):
    out = tmp_path / 'digits'
    first = run('--out', out, *TINY)
    assert first.returncode == 0, first.stderr
    assert (out / 'train/000002.jpg').exists()
    assert first.stdout.strip().endswith('written')

    second = run('--out', out, *TINY)
    assert second.returncode == 0
    assert 'already there' in second.stdout

    other = run('--out', out, *TINY, '--seed', 5)
    assert other.returncode == 1
    assert other.stderr.count('\n') == 1
    assert 'seed 0, not 5' in other.stderr
    assert '--force' in other.stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--digit-height', 20, 500], 'got 20 500'),
        (['--workers', 0], 'must be at least 1, got 0'),
    ],
)
def test_bad_argument_is_named_in_one_line(tmp_path, arguments, message):
    done = run('--out', tmp_path / 'digits', *arguments)
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('sent', 'workers', 'code'),
    [(signal.SIGINT, '1', 130), (signal.SIGTERM, '2', 143)],
)
def test_interrupt_leaves_nothing_behind(tmp_path, sent, workers, code):
    out = tmp_path / 'data/digits'
    # A shell that runs the tests in the background has SIGINT ignored.
    process = subprocess.Popen(
        [*COMMAND, '--num-train=999999', '--workers', workers, '--out', out],
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob('data/*/train/*.jpg')):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(sent)
        process.wait(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert not list(out.parent.iterdir())


def test_needs_no_deep_learning_library_to_run(tmp_path):
    script = (
        'import runpy, sys\n'
        'try:\n'
        f'    runpy.run_path(r"{TOOL}", run_name="__main__")\n'
        'finally:\n'
        '    heavy = {"torch", "mmengine", "mmcv", "mmdet"} & {*sys.modules}\n'
        '    print(sorted(heavy))\n'
    )
    command = [sys.executable, '-c', script]
    done = run('--out', tmp_path / 'digits', *TINY, command=command)
    assert done.stdout.splitlines()[-1] == '[]', done.stderr
