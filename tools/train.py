"""Train a detector, a segmentor or a classifier from a config."""

import argparse

from anchorformer_mm.engine.launch import (
    add_common_arguments,
    enable_amp,
    enable_auto_scale_lr,
    load_config,
    run,
)
from anchorformer_mm.utils.errors import run_command_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from CHECKPOINT, or from the latest one in the work '
        'folder (from scratch if it has none)',
    )
    parser.add_argument(
        '--amp', action='store_true', help='automatic mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the total batch size',
    )
    add_common_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args, splits=('train', 'val'))
    if args.amp:
        enable_amp(cfg)
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    run(cfg, 'train')


if __name__ == '__main__':
    run_command_line(main)
