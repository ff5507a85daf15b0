"""Trainings killed with SIGKILL, end to end on a tiny classifier."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anchorformer_mm.datasets import DigitsSpec, write_digits

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'misc' / 'resume_check.py'
CONFIG = ROOT / 'configs' / 'anchorformer_t_digits.py'
OPTIONS = (
    'model.backbone.arch.embed_dims=24',
    'model.backbone.arch.num_layers=1',
    'model.backbone.drop_path_rate=0.2',
    'model.head.in_channels=24',
    'train_dataloader.batch_size=4',
    'train_dataloader.dataset.indices=16',
    'val_dataloader.dataset.indices=8',
    'train_dataloader.num_workers=1',
    'train_cfg.max_epochs=2',
    'train_cfg.val_interval=1',
    'param_scheduler.0.end=3',
    'param_scheduler.1.T_max=2',
    'param_scheduler.1.end=2',
    'default_hooks.checkpoint.interval=1',
    'default_hooks.logger.interval=3',
)


SCENES = (
    'train_dataloader.num_workers=0',
    'train_dataloader.batch_size=2',
    'default_hooks.checkpoint.interval=1',
    'default_hooks.logger.interval=3',
)
DETECTOR = (
    *SCENES,
    'train_cfg.max_epochs=2',
    'train_cfg.val_interval=1',
    'param_scheduler.0.end=2',
    'param_scheduler.1.T_max=2',
    'param_scheduler.1.end=2',
)
SEGMENTOR = (
    *SCENES,
    'model.backbone.init_cfg=None',
    'model.decode_head.loss_decode.class_weight=None',
    'train_cfg.max_iters=4',
    'train_cfg.val_interval=2',
)


def check(folder, *args):
    return subprocess.run(
        [sys.executable, TOOL, *map(str, args)],
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.smoke
def test_killed_and_resumed_trainings_equal_the_unbroken_one(tmp_path):
    spec = DigitsSpec(num_train=4, num_val=2, scene_size=(96, 64))
    write_digits(tmp_path / 'data' / 'digits', spec)
    out = check(tmp_path, CONFIG, '--kills', 4, '--cfg-options', *OPTIONS)
    assert out.returncode == 0, out.stdout + out.stderr[-3000:]
    assert '4 of 4 equal the unbroken run' in out.stdout
    _, checkpoint, _, interrupted = (
        line for line in out.stdout.splitlines() if line.endswith('equal |')
    )
    # Within it or, as it takes milliseconds, in what comes next.
    assert 'setting up' not in checkpoint
    assert interrupted.startswith('| SIGTERM in ')
    # Nothing of another run is written over.
    again = check(tmp_path, CONFIG, '--cfg-options', *OPTIONS)
    assert again.returncode == 2
    assert 'is not empty: choose another --work-dir' in again.stderr


@pytest.mark.parametrize(
    ('name', 'options', 'args'),
    [
        ('semfpn_anchorformer_t_digits.py', SEGMENTOR, ()),
        ('picodet_anchorformer_t_digits.py', DETECTOR, ('--processes', 2)),
    ],
)
def test_so_do_those_of_other_tasks_and_of_several_processes(
    tmp_path, name, options, args
):
    spec = DigitsSpec(num_train=4, num_val=2, scene_size=(96, 64))
    write_digits(tmp_path / 'data' / 'digits', spec)
    config = CONFIG.with_name(name)
    args = [config, '--kills', 1, *args, '--skip-data-check']
    out = check(tmp_path, *args, '--cfg-options', *options)
    assert out.returncode == 0, out.stdout + out.stderr[-3000:]
    assert '1 of 1 equal the unbroken run' in out.stdout
    if '--processes' in args:
        log = next(tmp_path.glob('work_dirs/resume_check/*/output.log'))
        assert 'terminated with signal SIGKILL' in log.read_text()


@pytest.mark.smoke
def test_sigterm_leaves_a_checkpoint_and_one_line(tmp_path):
    spec = DigitsSpec(num_train=4, num_val=2, scene_size=(96, 64))
    write_digits(tmp_path / 'data' / 'digits', spec)
    command = [sys.executable, ROOT / 'tools' / 'train.py', CONFIG]
    options = ['--work-dir', 'run', '--cfg-options', *OPTIONS]
    options += ['train_cfg.max_epochs=99']
    process = subprocess.Popen(
        [*command, *options],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    # The log is there before training, but not a line of figures.
    while not list((tmp_path / 'run').glob('*/vis_data/scalars.json')):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert 'Traceback' not in errors
    *_, last = errors.splitlines()
    assert last.startswith('SIGTERM: saved ')
    assert last.endswith('; to go on, run the same command with --resume')
    saved = last.split()[2].rstrip(';')
    assert Path(saved).parent == tmp_path / 'run'
    assert Path(saved).is_file()
    assert (tmp_path / 'run/last_checkpoint').read_text() == saved


def test_no_kill_is_no_check(run_tool):
    tool = 'misc/resume_check.py'
    status, _, errors = run_tool(tool, str(CONFIG), '--kills', '0')
    assert status == 2
    assert errors == ['error: --kills must be at least 1, got 0']
    status, _, errors = run_tool(tool, str(CONFIG), '--processes', '0')
    assert status == 2
    message = 'error: --processes must lie between 1 and 64, got 0'
    assert errors == [message]
