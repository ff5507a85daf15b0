"""Run a tool of the project from anywhere, with the configs that it carries.

``python -m anchorformer_mm train picodet_s_coco.py --work-dir out`` is
``python tools/train.py configs/picodet_s_coco.py --work-dir out`` of the
repository.
"""

import runpy
import sys
from collections.abc import Mapping
from pathlib import Path

from anchorformer_mm.utils.errors import UsageError, run_command_line

# Laid here when the project is installed.
CARRIED = Path(__file__).parent / '.mim'


def carried_tools() -> dict[str, Path]:
    """Name to file of the tools, but for those of the repository itself.

    Raises:
        UsageError: The project is not installed.
    """
    folder = CARRIED / 'tools'
    if not folder.is_dir():
        raise UsageError(
            f'{folder} is missing: pip install the project, a folder on '
            'PYTHONPATH has no tools'
        )
    paths = sorted(folder.rglob('*.py'))
    return {p.stem: p for p in paths if p.parent.name != 'misc'}


def resolve_config(argument: str) -> str:
    """The path of a config that the package carries, if it is one's name.

    Args:
        argument: Any argument of a command line. A file that is there stays
            what it is; ``NAME.py`` and ``configs/NAME.py`` are looked up.
    """
    path = Path(argument)
    carried = CARRIED / 'configs' / path.name
    named = path.parent.as_posix() in ('.', 'configs')
    if named and path.suffix == '.py' and not path.exists():
        return str(carried) if carried.is_file() else argument
    return argument


def usage(tools: Mapping[str, Path]) -> str:
    """How to call it, and what there is."""
    names = '\n'.join(f'  {name}' for name in sorted(tools))
    return (
        'usage: python -m anchorformer_mm TOOL [ARGUMENTS]\n\n'
        f'tools, each with its own --help:\n{names}\n\n'
        f'configs, named without a path: {CARRIED / "configs"}'
    )


def main() -> None:
    tools = carried_tools()
    name, *arguments = sys.argv[1:] or ['--help']
    if name in ('-h', '--help'):
        print(usage(tools))
        return
    if name not in tools:
        raise UsageError(
            f'TOOL must be one of {", ".join(sorted(tools))}; got {name}'
        )
    sys.argv = [str(tools[name]), *map(resolve_config, arguments)]
    runpy.run_path(str(tools[name]), run_name='__main__')


if __name__ == '__main__':
    run_command_line(main)
