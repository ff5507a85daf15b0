"""Count parameters and multiply-accumulates of the models of configs."""

import argparse
from pathlib import Path

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line

CONVENTION = (
    'MACs: multiply-accumulates of convolutions, linear layers and matrix\n'
    'products, attention included, for one image of {} x {} px up to the raw\n'
    'outputs of the heads; FLOPs are twice as many. Norms, activations,\n'
    'softmax, pooling and interpolation are not counted. Auxiliary heads run\n'
    'in training only: they are among the parameters, not the MACs.'
)


def parse_args() -> argparse.Namespace:
    # Imports what was just checked.
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', help='config files')
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
    parser.set_defaults(launcher='none', local_rank=0, work_dir=None)
    return parser.parse_args()


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    args = parse_args()
    if min(args.shape) < 1:
        raise UsageError(
            f'--shape must be two numbers >= 1, got {args.shape[0]} '
            f'{args.shape[1]}'
        )
    # Import what was just checked.
    from anchorformer_mm.analysis.complexity import (
        build_from_config,
        complexity_table,
        count_complexity,
    )
    from anchorformer_mm.engine.launch import load_config

    rows = {}
    for path in args.configs:
        args.config = path
        cfg = load_config(args, [])
        name = Path(path).stem
        if name in rows:
            raise UsageError(f'several configs are named {name}')
        model = build_from_config(cfg, backbone_only=args.backbone_only)
        rows[name] = count_complexity(model, args.shape)
    print(complexity_table(rows))
    print()
    print(CONVENTION.format(*args.shape))


if __name__ == '__main__':
    run_command_line(main)
