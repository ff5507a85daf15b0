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


def command(*arguments) -> dict:
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    return {
        'args': [sys.executable, str(TOOL), *map(str, arguments)],
        'env': {**os.environ, 'PYTHONPATH': path},
        'text': True,
        'stdout': subprocess.PIPE,
        'stderr': subprocess.PIPE,
    }


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(**command(*arguments), timeout=60)


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


def test_foreign_folder_is_refused_in_one_line(tmp_path):
    (tmp_path / 'mine.txt').touch()
    done = run('--out', tmp_path, *TINY, '--force')
    assert done.returncode == 1
    assert done.stderr.count('\n') == 1
    assert 'not a digits data set' in done.stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--num-train', 0], 'num_train must be at least 1, got 0'),
        (['--scene-size', 32, 32], 'at least 64 px on both sides'),
        (['--digit-height', 20, 500], 'got 20 500'),
        (['--workers', 0], 'must be at least 1, got 0'),
        (['--seed', 'x'], "invalid int value: 'x'"),
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
    [(signal.SIGINT, 1, 130), (signal.SIGTERM, 2, 143)],
)
def test_interrupt_leaves_nothing_behind(tmp_path, sent, workers, code):
    out = tmp_path / 'data/digits'
    # A shell that runs the tests in the background has SIGINT ignored.
    process = subprocess.Popen(
        **command('--out', out, '--num-train', 10**6, '--workers', workers),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob('data/*/train/*.jpg')):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(sent)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert not list(out.parent.iterdir())


def test_needs_no_deep_learning_library_to_run(tmp_path):
    script = (
        'import runpy, sys\n'
        f'sys.argv = ["make_digits.py", "--out", r"{tmp_path / "digits"}", '
        f'*{TINY}]\n'
        'try:\n'
        f'    runpy.run_path(r"{TOOL}", run_name="__main__")\n'
        'finally:\n'
        '    heavy = {"torch", "mmengine", "mmcv", "mmdet"} & {*sys.modules}\n'
        '    print(sorted(heavy))\n'
    )
    options = command()
    options['args'] = [sys.executable, '-c', script]
    done = subprocess.run(**options, timeout=60)
    assert done.stdout.splitlines()[-1] == '[]', done.stderr
