"""The set-up script, without a network and without building anything."""

import ast
import json
import re
import sys
from pathlib import Path

import bootstrap
import bootstrap_build as build
import bootstrap_checks as checks
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorformer_mm.utils.environment import LIBRARIES

ROOT = Path(__file__).resolve().parents[2]
MISC = ROOT / 'tools' / 'misc'

MADE_FOR = {'python': '3.11', 'root': '/there', 'stack': 'onedl'}


def add_distribution(venv: Path, name: str) -> None:
    packages = venv / 'lib' / 'python3.11' / 'site-packages'
    (packages / f'{name}.dist-info').mkdir(parents=True)


# --- what the machine must have


@pytest.mark.parametrize('version', [(3, 9, 18), (2, 7, 18), (3, 14, 0)])
def test_an_unsupported_python_is_told_what_to_do(
    version: tuple[int, ...],
) -> None:
    dotted = '.'.join(map(str, version))
    problem = checks.python_problem(version, ['python3.12', 'python3.10'])
    assert problem == (
        f'Python {dotted} is running, but 3.10 to 3.13 are supported: run '
        'make with PYTHON=python3.12'
    )
    assert 'install one' in checks.python_problem(version, [])


@given(minor=st.integers(10, 13), micro=st.integers(0, 30))
def test_every_supported_python_is_accepted(minor: int, micro: int) -> None:
    assert checks.python_problem((3, minor, micro), []) == ''


@pytest.mark.parametrize('path', sorted(MISC.glob('bootstrap*.py')))
def test_old_pythons_can_read_the_script(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 7))


def test_the_script_stops_at_an_old_python(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, 'version_info', (3, 8, 1))
    assert bootstrap.main() == 1
    assert 'Python 3.8.1 is running' in capsys.readouterr().out


def test_what_the_machine_lacks_is_said_in_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('PATH', '')
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setattr(checks, 'free_bytes', lambda place: 2 * checks.GIB)
    monkeypatch.setattr(
        checks.sysconfig, 'get_paths', lambda: {'include': str(tmp_path)}
    )
    compiler, headers, disk = checks.machine_problems(
        tmp_path / '.venv', tmp_path / 'cache'
    )
    assert compiler.startswith("no C++ compiler: 'c++' is not on PATH")
    assert headers.startswith(f'no Python headers: {tmp_path}/Python.h')
    assert disk == (
        f'too little free disk: 2.0 GiB at {tmp_path}/.venv, 4 GiB needed'
    )


def test_an_environment_that_has_torch_needs_less_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / '.venv/lib/python3.11/site-packages/torch').mkdir(parents=True)
    monkeypatch.setattr(checks, 'free_bytes', lambda place: 2 * checks.GIB)
    problems = checks.machine_problems(tmp_path / '.venv', tmp_path)
    assert not any('disk' in problem for problem in problems)


def test_this_machine_is_measured_where_nothing_exists_yet(
    tmp_path: Path,
) -> None:
    assert checks.free_bytes(tmp_path / 'a' / 'b') > 0


# --- what is there already


@pytest.mark.parametrize(
    ('stack', 'held'),
    [('onedl', 'mmcv-2.1.0'), ('openmmlab', 'onedl_mmdetection-3.5.1')],
)
def test_an_environment_of_the_other_family_is_refused(
    stack: str, held: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, 'ROOT', tmp_path)
    venv = tmp_path / bootstrap.STACKS[stack].folder
    add_distribution(venv, held)
    before = sorted(tmp_path.rglob('*'))
    name = checks.normalized(held.rsplit('-', 1)[0])
    with pytest.raises(build.SetupError, match=f'{venv.name} holds {name} '):
        bootstrap.set_up(stack)
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('stack', bootstrap.STACKS)
def test_its_own_family_is_not_foreign(stack: str, tmp_path: Path) -> None:
    for name in bootstrap.STACKS[stack].distributions:
        add_distribution(tmp_path, f'{name.replace("-", "_")}-1.0')
    add_distribution(tmp_path, 'torch-2.13.0+cpu')
    assert checks.foreign_distributions(tmp_path, stack) == []


def test_an_environment_made_by_hand_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / '.venv').mkdir()
    (tmp_path / '.venv' / 'pyvenv.cfg').touch()
    environment = bootstrap.Environment(tmp_path / '.venv', 'onedl')
    with pytest.raises(build.SetupError, match='was not made by this script'):
        environment.make()
    assert (tmp_path / '.venv' / 'pyvenv.cfg').exists()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files that a finished environment depends on."""
    for name in ['requirements', 'tools/misc']:
        (tmp_path / name).mkdir(parents=True)
    for name in [
        'requirements/onedl.txt',
        'requirements/dev.txt',
        'setup.py',
        'tools/misc/torchvision_schemas.py',
    ]:
        (tmp_path / name).write_text(name)
    return tmp_path


def test_the_stamp_follows_every_input(project: Path) -> None:
    version = (3, 11, 7)
    keys = {checks.stamp_key(project, 'onedl', version)}
    assert keys == {checks.stamp_key(project, 'onedl', version)}
    keys.add(checks.stamp_key(project, 'openmmlab', version))
    keys.add(checks.stamp_key(project, 'onedl', (3, 11, 8)))
    for path in sorted(p for p in project.rglob('*') if p.is_file()):
        path.write_text('changed')
        keys.add(checks.stamp_key(project, 'onedl', version))
    assert len(keys) == 7


def test_only_a_finished_environment_is_ready(tmp_path: Path) -> None:
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'python').touch()
    (tmp_path / checks.MARKER).write_text(json.dumps(MADE_FOR))
    assert not checks.is_ready(tmp_path, 'key', MADE_FOR)
    (tmp_path / checks.STAMP).write_text('key')
    assert checks.is_ready(tmp_path, 'key', MADE_FOR)
    assert not checks.is_ready(tmp_path, 'another key', MADE_FOR)
    moved = MADE_FOR | {'root': '/elsewhere'}
    assert not checks.is_ready(tmp_path, 'key', moved)


def test_a_marker_cut_short_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / checks.MARKER).write_text('{"python": "3.')
    assert checks.read_marker(tmp_path) is None


# --- pins that are written in more than one place


def families_of_setup() -> dict[str, list[str]]:
    for node in ast.parse((ROOT / 'setup.py').read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == 'FAMILIES':
            return ast.literal_eval(node.value)
    raise AssertionError('setup.py has no FAMILIES')


@pytest.mark.parametrize('stack', bootstrap.STACKS)
def test_extras_requirements_and_messages_name_the_same_versions(
    stack: str,
) -> None:
    text = (ROOT / f'requirements/{stack}.txt').read_text()
    pins = set(re.findall(r'^(?:onedl-)?mm\w+==.*$', text, re.MULTILINE))
    pins.add(bootstrap.STACKS[stack].mmcv)
    known = {
        library.requirement(stack)
        for library in LIBRARIES.values()
        if library.fork
    }
    assert set(families_of_setup()[stack]) == pins == known


def test_every_requirement_is_pinned() -> None:
    for path in (ROOT / 'requirements').glob('*.txt'):
        for line in path.read_text().splitlines():
            if line and not line.startswith(('#', '-r ')):
                assert re.match(
                    r'[\w.-]+==[\w.]+(; python_version (<|>=) .*)?$', line
                )
