"""Count all models for public data sets: metafile and tables of the README.

Writes configs/metafile.yml, which model-index.yml imports, and the marked
tables of README.md. Takes minutes, and no data.
"""

import argparse
import sys
from pathlib import Path

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--root',
        type=Path,
        default=Path(__file__).resolve().parents[2],
        help='folder with configs/ and README.md (default: of this file)',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing; exit with status 2 if a file is not up to date',
    )
    return parser.parse_args()


def main() -> None:
    check_environment(['mmdet', 'mmseg', 'mmpretrain'])
    args = parse_args()
    readme = args.root / 'README.md'
    if not readme.is_file():
        raise UsageError(f'--root must hold README.md, got {args.root}')
    # Import what was just checked.
    from anchorformer_mm.analysis.model_decisions import TABLES
    from anchorformer_mm.analysis.model_index import (
        metafile,
        model_entry,
        model_table,
        public_configs,
    )
    from anchorformer_mm.utils.files import replacing
    from anchorformer_mm.utils.marked_blocks import replace_blocks

    configs = public_configs(args.root / 'configs')
    entries = []
    for number, config in enumerate(configs, 1):
        print(f'{number}/{len(configs)} {config.stem}', file=sys.stderr)
        entries.append(model_entry(config, args.root))
    tables = {
        name: model_table(table, entries) for name, table in TABLES.items()
    }
    page = readme.read_text(encoding='utf-8')
    content = {
        args.root / 'configs' / 'metafile.yml': metafile(entries),
        readme: replace_blocks(page, tables),
    }
    stale = [
        path
        for path, text in content.items()
        if not path.is_file() or path.read_text(encoding='utf-8') != text
    ]
    if args.check and stale:
        raise UsageError(
            f'{" and ".join(str(path) for path in stale)} not up to date: '
            'python tools/misc/make_model_index.py'
        )
    for path in stale:
        with replacing(path) as file:
            file.write_text(content[path], encoding='utf-8')
        print(path)


if __name__ == '__main__':
    run_command_line(main)
