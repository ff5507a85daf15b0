"""Count parameters and multiply-accumulates of the models of configs."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.files import replacing

CONVENTION = (
    'MACs: multiply-accumulates of convolutions, linear layers and matrix\n'
    'products, attention included, for one image of {} x {} px up to the raw\n'
    'outputs of the heads; FLOPs are twice as many. Auxiliary heads run in\n'
    'training only: they are among the parameters, not the MACs.'
)


def parse_args() -> argparse.Namespace:
    # Imports what was just checked.
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'configs',
        nargs='+',
        help="config files, or a library's own as "
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    )
    parser.add_argument(
        '--shape',
        required=True,
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='height and width of the image, px',
    )
    parser.add_argument(
        '--backbone-only',
        action='store_true',
        help='count the backbone alone, also of models that cannot be '
        'counted as a whole',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='overrides of every config, as key=value pairs',
    )
    parser.add_argument(
        '--json',
        type=Path,
        metavar='FILE',
        help='file for the figures as whole numbers, and the calls of each '
        'operator that is not counted',
    )
    return parser.parse_args()


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    args = parse_args()
    if min(args.shape) < 1:
        raise UsageError(
            f'--shape must be two numbers >= 1, got {args.shape[0]} '
            f'{args.shape[1]}'
        )
    if args.json is not None and args.json.is_dir():
        raise UsageError(f'--json must be a file, got the folder {args.json}')
    # Import what was just checked.
    from mmengine.logging import MMLogger

    from anchorformer_mm.analysis.complexity import (
        build_from_config,
        complexity_table,
        count_complexity,
    )
    from anchorformer_mm.analysis.config_models import read_config
    from anchorformer_mm.analysis.uncounted import in_words

    # The libraries' own words would stand above the table.
    MMLogger.get_instance('mmengine', log_level='WARNING')
    rows = {}
    for config in args.configs:
        cfg = read_config(config, args.cfg_options)
        name = Path(config).stem
        if name in rows:
            raise UsageError(f'several configs are named {name}')
        model = build_from_config(cfg, backbone_only=args.backbone_only)
        rows[name] = count_complexity(model, args.shape)
    print(complexity_table(rows))
    print()
    print(CONVENTION.format(*args.shape))
    print()
    print('Ran and was not counted, by calls:')
    for name, cost in rows.items():
        print(f'- {name}: {in_words(cost.not_counted)}')
    if args.json is not None:
        models = [
            dict(
                config=config,
                cfg_options=args.cfg_options or {},
                backbone_only=args.backbone_only,
                shape=args.shape,
                flops=2 * cost.macs,
                **asdict(cost),
            )
            for config, cost in zip(args.configs, rows.values(), strict=True)
        ]
        with replacing(args.json) as path:
            path.write_text(f'{json.dumps(models, indent=2)}\n')


if __name__ == '__main__':
    run_command_line(main)
