"""Check the images and annotations that a config names.

Prints one line for each finding, with the file, what is wrong and what mends
it, then how many there are of each kind. Exit status: 0 without errors
(warnings do not count), 1 with errors, 2 if the check itself cannot run.
"""

import argparse
import sys
import time

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line

SPLITS = ('train', 'val', 'test')


def parse_args() -> argparse.Namespace:
    # Imports what was just checked.
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--splits',
        nargs='+',
        choices=SPLITS,
        help='what to check (default: all that the config has)',
    )
    parser.add_argument(
        '--sample',
        type=int,
        metavar='N',
        help='read N images of each data set, evenly spread (default: all)',
    )
    parser.add_argument(
        '--workers',
        type=int,
        metavar='N',
        help='processes that read images (default: one a core)',
    )
    parser.add_argument(
        '--fast',
        action='store_true',
        help='read headers of images only: files that end early are missed',
    )
    parser.add_argument(
        '--limit',
        type=int,
        default=20,
        metavar='N',
        help='lines for each kind of finding, 0 for all (default: 20)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='overrides of the config, as key=value pairs',
    )
    parser.set_defaults(launcher='none', local_rank=0, work_dir=None)
    return parser.parse_args()


def check_numbers(args: argparse.Namespace) -> None:
    for name, least in (('sample', 1), ('workers', 1), ('limit', 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f'--{name} must be >= {least}, got {value}')


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    args = parse_args()
    check_numbers(args)
    # Import what was just checked.
    from anchorformer_mm.engine.launch import load_config
    from anchorformer_mm.utils.dataset_paths import require_datasets

    cfg = load_config(args, [])
    scope = cfg.get('default_scope')
    if scope not in ('mmdet', 'mmseg', 'mmpretrain'):
        raise UsageError(
            'the data of detectors, segmentors and classifiers is checked; '
            f'{args.config} is of {scope}'
        )
    there = [split for split in SPLITS if cfg.get(f'{split}_dataloader')]
    splits = list(dict.fromkeys(args.splits or there))
    absent = [split for split in splits if split not in there]
    if absent or not splits:
        raise UsageError(
            f'--splits must be of what the config has, {there}, got {splits}'
        )
    require_datasets(cfg, splits)
    from anchorformer_mm.datasets.checks.data_sets import check_datasets
    from anchorformer_mm.datasets.checks.findings import listed, summary

    start = time.monotonic()
    report = check_datasets(
        cfg,
        splits,
        sample=args.sample,
        workers=args.workers,
        fast=args.fast,
    )
    for line in listed(report.findings, args.limit):
        print(line)
    for line in summary(report.findings):
        print(line)
    read = ', '.join(
        f'{title} {report.read[title]} of {count}'
        for title, count in report.listed.items()
    )
    seconds = time.monotonic() - start
    print(f'images read: {read} ({seconds:.1f} s)', file=sys.stderr)
    if any(finding.level == 'error' for finding in report.findings):
        raise SystemExit(1)


if __name__ == '__main__':
    run_command_line(main)
