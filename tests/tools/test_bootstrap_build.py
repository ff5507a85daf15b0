"""Long commands and the cache of wheels, without building anything."""

import os
import re
import subprocess
from pathlib import Path

import bootstrap_build as build
import pytest

MISC = Path(__file__).resolve().parents[2] / 'tools' / 'misc'


def test_the_cache_folder_follows_the_environment_variables() -> None:
    home = Path('/home/someone')
    assert build.cache_folder({}, home) == home / '.cache/anchorformer_mm'
    environ = {'XDG_CACHE_HOME': '/xdg'}
    assert build.cache_folder(environ, home) == Path('/xdg/anchorformer_mm')
    environ['ANCHORFORMER_MM_CACHE'] = '/own'
    assert build.cache_folder(environ, home) == Path('/own')


def test_wheels_are_kept_apart_by_torch_python_machine_and_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build.platform, 'machine', lambda: 'x86_64')
    key = build.wheel_key('2.13.0+cpu', (3, 11), '')
    assert key == 'torch2.13.0+cpu-cp311-x86_64'
    key = build.wheel_key('2.13.0+cu130', (3, 12), '90')
    assert key == 'torch2.13.0+cu130-cp312-x86_64-sm90'


def test_only_the_wheel_of_that_name_and_version_is_found(
    tmp_path: Path,
) -> None:
    for name in ['onedl_mmcv-2.3.6', 'mmcv-2.1.0', 'mmcv-2.1.01']:
        (tmp_path / f'{name}-cp311-cp311-linux_x86_64.whl').touch()
    for requirement, name in [
        ('onedl-mmcv==2.3.6', 'onedl_mmcv-2.3.6-cp311'),
        ('mmcv==2.1.0', 'mmcv-2.1.0-cp311'),
    ]:
        wheel = build.find_wheel(tmp_path, requirement)
        assert wheel is not None
        assert wheel.name.startswith(name)
    assert build.find_wheel(tmp_path, 'mmcv==2.2.0') is None
    assert build.find_wheel(tmp_path / 'none', 'mmcv==2.1.0') is None


def fake_python(folder: Path, script: str) -> Path:
    """An interpreter that runs a shell script whatever it is told to do."""
    python = folder / 'python'
    python.write_text(f'#!/bin/sh\n{script}\n')
    python.chmod(0o755)
    return python


def test_a_wheel_is_built_aside_and_renamed_into_place(
    tmp_path: Path,
) -> None:
    python = fake_python(
        tmp_path,
        'while [ "$1" != --wheel-dir ]; do shift; done; mkdir -p "$2"\n'
        'echo "$MMCV_WITH_OPS $MAX_JOBS [$CUDA_VISIBLE_DEVICES] $TMPDIR"\n'
        'echo "${PATH%%:*}"; echo whole > "$2/mmcv-2.1.0-cp311-x.whl"',
    )
    folder, log = tmp_path / 'cache' / 'key', tmp_path / 'logs' / 'log'
    wheel = build.build_wheel(
        python, 'mmcv==2.1.0', folder, log, with_cuda=False
    )
    assert wheel == folder / 'mmcv-2.1.0-cp311-x.whl'
    assert wheel.read_text() == 'whole\n'
    assert list(folder.iterdir()) == [wheel]
    settings, first_on_path = log.read_text().splitlines()
    assert re.match(rf'1 [1-9]\d* \[\] {folder}/\.partial-', settings)
    assert first_on_path == str(tmp_path)


def test_a_failed_build_shows_its_last_lines_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    python = fake_python(tmp_path, 'echo error: no such header; exit 1')
    folder, log = tmp_path / 'cache', tmp_path / 'log'
    with pytest.raises(build.SetupError) as caught:
        build.build_wheel(python, 'mmcv==2.1.0', folder, log, with_cuda=False)
    assert f'failed, see {log}' in str(caught.value)
    assert str(caught.value).endswith('| error: no such header')
    assert list(folder.iterdir()) == []


def test_what_a_killed_build_left_is_removed_a_day_later(
    tmp_path: Path,
) -> None:
    python = fake_python(tmp_path, 'exit 1')
    folder = tmp_path / 'cache'
    for name in ['.partial-old', '.partial-new']:
        (folder / name).mkdir(parents=True)
    os.utime(folder / '.partial-old', (0, 0))
    with pytest.raises(build.SetupError):
        build.build_wheel(
            python, 'mmcv==2.1.0', folder, tmp_path / 'log', with_cuda=False
        )
    assert [path.name for path in folder.iterdir()] == ['.partial-new']


def test_an_interrupted_command_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def interrupt(process: subprocess.Popen, *_: object) -> None:
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(build, '_watch', interrupt)
    with pytest.raises(KeyboardInterrupt):
        build.run_logged('sleeping', ['sleep', '60'], tmp_path / 'log')
    assert started[0].poll() is not None


def test_a_second_signal_does_not_spare_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ['sh', '-c', 'trap "" INT; sleep 60']
    process = subprocess.Popen(command, start_new_session=True)

    wait = process.wait

    def wait_with_signal(timeout: float | None = None) -> int:
        if timeout:
            raise SystemExit(143)
        return wait()

    monkeypatch.setattr(process, 'wait', wait_with_signal)
    with pytest.raises(SystemExit):
        build._stop(process)
    assert process.poll() is not None


def test_the_first_errors_and_the_end_of_a_log_are_shown() -> None:
    log = ['a.cpp:1: error: no such type'] + [f'line {i}' for i in range(20)]
    shown = build.failure_excerpt('\n'.join(log)).splitlines()
    assert shown[0] == '  | a.cpp:1: error: no such type'
    assert shown[1:] == [f'  | line {i}' for i in range(10, 20)]
    assert build.failure_excerpt('error: once') == '  | error: once'


def test_build_progress_is_what_ninja_said_last() -> None:
    log = 'Building wheel\n  [1/78] c++ -c a.cpp\n  [2/78] c++ -c [9/9].cpp\n'
    assert build.build_progress(log) == '2 of 78 objects compiled'
    assert build.build_progress('Collecting mmcv') == 'preparing'
