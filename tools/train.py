"""Train a detector, a segmentor or a classifier from a config."""

import argparse

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import run_command_line


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    # Imports what was just checked.
    from anchorformer_mm.engine import launch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from CHECKPOINT, or from the newest readable one in the '
        'work folder (from scratch if it has none)',
    )
    parser.add_argument(
        '--amp', action='store_true', help='automatic mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the total batch size',
    )
    launch.add_common_arguments(parser)
    args = parser.parse_args()

    cfg = launch.load_config(args, splits=('train', 'val'))
    if args.amp:
        launch.enable_amp(cfg)
    if args.auto_scale_lr:
        launch.enable_auto_scale_lr(cfg)
    if args.resume is not None:
        cfg.resume = True
        if args.resume != 'auto':
            cfg.load_from = args.resume
        elif 'load_from' in cfg:
            # Whose weights a run begins with, if there is nothing to resume.
            cfg.begin_from = cfg.pop('load_from')
    launch.run(cfg, 'train')


if __name__ == '__main__':
    run_command_line(main)
