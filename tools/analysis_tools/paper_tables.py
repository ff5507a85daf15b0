"""Count the models of the paper's tables, and write them into the docs.

Writes docs/results.json, the marked parts of docs/results.md and the plots
docs/images/paper_*.png. Needs no data and no weights.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ['torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain']
CHOICES = ('1', '2', '3', '4', '5', 'figure5')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--tables',
        nargs='+',
        choices=CHOICES,
        default=CHOICES,
        help='which to count (default: all); the others stay as they are',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='count nothing; fail if page, JSON and plots disagree',
    )
    parser.add_argument(
        '--docs',
        type=Path,
        default=ROOT / 'docs',
        help='folder with results.md (default: docs of this project)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_environment(LIBRARIES)
    # Import what was just checked.
    from mmengine.logging import MMLogger

    from anchorformer_mm.analysis.paper_tables import document
    from anchorformer_mm.analysis.paper_tables.measure import measure_table

    if args.check:
        found = document.disagreements(args.docs)
        if found:
            advice = 'tools/analysis_tools/paper_tables.py makes them anew'
            raise UsageError('\n'.join([*found, advice]))
        return
    # The libraries' own words would be on the screen between the rows.
    MMLogger.get_instance('mmengine', log_level='WARNING')
    tables = document.read(args.docs)
    progress = partial(print, file=sys.stderr, flush=True)
    for choice in args.tables:
        name = f'table{choice}' if choice.isdecimal() else choice
        tables[name] = measure_table(name, ROOT, progress)
    document.write(args.docs, tables)


if __name__ == '__main__':
    run_command_line(main)
