"""The set-up script, without a network."""

import ast
import re
import sys
from pathlib import Path

import bootstrap
import pytest

ROOT = Path(__file__).resolve().parents[2]


def add_distribution(venv: Path, name: str) -> None:
    packages = venv / 'lib' / 'python3.11' / 'site-packages'
    (packages / f'{name}.dist-info').mkdir(parents=True)


def test_old_pythons_can_read_the_script() -> None:
    ast.parse(Path(bootstrap.__file__).read_text(), feature_version=(3, 7))


@pytest.mark.parametrize('version', [(3, 9, 18), (3, 14, 0)])
def test_an_unsupported_python_is_refused(
    version: tuple[int, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, 'version_info', version)
    problems = bootstrap.machine_problems(tmp_path)
    assert any(f'Python 3.{version[1]}' in problem for problem in problems)


@pytest.mark.parametrize(
    ('stack', 'held'),
    [
        ('onedl', 'mmcv-2.1.0'),
        ('onedl', 'mmcv_lite-2.1.0'),
        ('openmmlab', 'onedl_mmdetection-3.5.1'),
    ],
)
def test_an_environment_of_the_other_family_is_refused(
    stack: str, held: str, tmp_path: Path
) -> None:
    add_distribution(tmp_path, 'torch-2.13.0+cpu')
    assert bootstrap.foreign_distributions(tmp_path, stack) == []
    add_distribution(tmp_path, held)
    name = held.rsplit('-', 1)[0].replace('_', '-')
    assert bootstrap.foreign_distributions(tmp_path, stack) == [name]


@pytest.mark.parametrize('stack', bootstrap.FOLDERS)
def test_its_own_family_is_not_foreign(stack: str, tmp_path: Path) -> None:
    for name in {*bootstrap.pins(stack), bootstrap.COMPILED[stack]}:
        add_distribution(tmp_path, f'{name.replace("-", "_")}-1.0')
    assert bootstrap.foreign_distributions(tmp_path, stack) == []


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / '.venv').mkdir()
    (tmp_path / '.venv' / 'notes.txt').touch()
    environment = bootstrap.Environment(tmp_path / '.venv', 'onedl')
    with pytest.raises(bootstrap.SetupError, match='move it away'):
        environment.make()
    assert (tmp_path / '.venv' / 'notes.txt').exists()


def test_a_failed_command_shows_how_it_ended(tmp_path: Path) -> None:
    command = [sys.executable, '-c', 'print("first"); raise SystemExit("why")']
    with pytest.raises(bootstrap.SetupError, match=r'log\n.*first\n.*why'):
        bootstrap.run_logged('trying', command, tmp_path / 'a' / 'log')


def test_every_requirement_is_pinned() -> None:
    for path in (ROOT / 'requirements').glob('*.txt'):
        for line in path.read_text().splitlines():
            if line and not line.startswith(('#', '-r ')):
                assert re.match(
                    r'[\w.-]+==[\w.]+(; python_version (<|>=) .*)?$', line
                )
