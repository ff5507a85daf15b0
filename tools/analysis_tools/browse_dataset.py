"""Picture what a config gives to its model, after all of its transforms."""

import argparse
from pathlib import Path

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line


def parse_args() -> argparse.Namespace:
    # Imports what was just checked.
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--out', required=True, type=Path, help='folder for the pictures'
    )
    parser.add_argument(
        '--split', choices=['train', 'val', 'test'], default='train'
    )
    parser.add_argument(
        '--count', type=int, default=16, help='images (default: 16)'
    )
    parser.add_argument(
        '--grid', action='store_true', help='all on one sheet, grid.png'
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='of the order and the random transforms (default: 0)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='overrides of the config, as key=value pairs',
    )
    parser.set_defaults(launcher='none', local_rank=0, work_dir=None)
    return parser.parse_args()


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    args = parse_args()
    if args.count < 1:
        raise UsageError(f'--count must be >= 1, got {args.count}')
    if args.out.exists() and not args.out.is_dir():
        raise UsageError(f'--out must be a folder, got the file {args.out}')
    # Import what was just checked.
    from anchorformer_mm.engine.launch import load_config
    from anchorformer_mm.utils.dataset_paths import require_datasets

    cfg = load_config(args, [])
    scope = cfg.get('default_scope')
    if scope not in ('mmdet', 'mmseg', 'mmpretrain'):
        raise UsageError(
            'the data of detectors, segmentors and classifiers is drawn; '
            f'{args.config} is of {scope}'
        )
    require_datasets(cfg, [args.split])
    from anchorformer_mm.analysis.browse import model_inputs
    from anchorformer_mm.analysis.browse_panels import (
        picture_examples,
        write_pictures,
    )

    examples, meta = model_inputs(cfg, args.split, args.count, seed=args.seed)
    pictures = picture_examples(examples, meta, scope)
    if not pictures:
        raise UsageError(f'{args.split}_dataloader has no image')
    for path in write_pictures(pictures, meta, args.out, grid=args.grid):
        print(path)


if __name__ == '__main__':
    run_command_line(main)
