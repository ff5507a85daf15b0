"""Check the data of a config: what its model will be given.

Builds the data sets and metrics of the config, looks at every annotation, and
runs every image through the pipeline. Prints one line for each kind of fault.
Exit status: 0 without errors (warnings do not count), 1 with errors, 2 if the
check cannot run.
"""

import argparse
import os
from typing import Any

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
    add = parser.add_argument
    add('config', help='config file')
    text = 'default: all that differ'
    add('--splits', nargs='+', choices=SPLITS, help=text)
    text = 'for each split, for evenly spread images (default: all images)'
    add('--seconds', type=float, help=text)
    cores = os.cpu_count()
    add('--workers', type=int, default=cores, help='default: one a core')
    text = 'cases named for each kind of fault (default: 20)'
    add('--limit', type=int, default=20, help=text)
    add('--cfg-options', nargs='+', action=DictAction, help='key=value pairs')
    args = parser.parse_args()
    for name, least in (('seconds', 0), ('workers', 0), ('limit', 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f'--{name} must be >= {least}, got {value}')
    return args


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    args = parse_args()
    # Import what was just checked.
    from mmengine.evaluator import Evaluator
    from mmengine.registry import DATASETS, init_default_scope
    from rich.console import Console
    from rich.progress import track

    from anchorformer_mm.apis import read_config
    from anchorformer_mm.datasets.checks import ERROR, check_splits
    from anchorformer_mm.utils.files import require_datasets

    cfg = read_config(args.config, args.cfg_options)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    there = [split for split in SPLITS if cfg.get(f'{split}_dataloader')]
    if absent := {*(args.splits or ())} - {*there}:
        raise UsageError(f'{args.config} has no data for {sorted(absent)}')
    if cfg.get('test_dataloader') == cfg.get('val_dataloader'):
        there = [split for split in there if split != 'test']
    splits = args.splits or there
    require_datasets(cfg, splits)

    def build(split: str) -> tuple[Any, list]:
        dataset = DATASETS.build(cfg[f'{split}_dataloader']['dataset'])
        evaluator = cfg.get(f'{split}_evaluator')
        return dataset, Evaluator(evaluator).metrics if evaluator else []

    def progress(items: Any, total: int, label: str) -> Any:
        console = Console(stderr=True)
        return track(items, label, total, console=console, transient=True)

    findings = check_splits(
        cfg, splits, build, args.seconds, workers=args.workers, track=progress
    )
    for finding in findings:
        print(f'{finding.severity}: {finding.text(args.limit)}')
    errors = sum(finding.severity == ERROR for finding in findings)
    print(f'{errors} errors, {len(findings) - errors} warnings')
    if errors:
        raise SystemExit(1)


if __name__ == '__main__':
    run_command_line(main)
