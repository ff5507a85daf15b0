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
    add = parser.add_argument
    own = "config files, or a library's own as mmdet::rtmdet/FILE.py"
    add('configs', nargs='+', help=own)
    size = dict(nargs=2, type=int, metavar=('H', 'W'))
    text = 'height and width of the image, px'
    add('--shape', required=True, **size, help=text)
    text = (
        'count the backbone alone, also of models that cannot be counted as '
        'a whole'
    )
    add('--backbone-only', action='store_true', help=text)
    options = 'overrides of every config, as key=value pairs'
    add('--cfg-options', nargs='+', action=DictAction, help=options)
    text = (
        'file for the figures as whole numbers, and the calls of each '
        'operator that is not counted'
    )
    add('--json', type=Path, metavar='FILE', help=text)
    return parser.parse_args()


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    args = parse_args()
    if min(args.shape) < 1:
        raise UsageError(f'--shape must be two numbers >= 1: {args.shape}')
    if args.json is not None and args.json.is_dir():
        raise UsageError(f'--json must be a file, got the folder {args.json}')
    names = [Path(config).stem for config in args.configs]
    if len(set(names)) < len(names):
        raise UsageError(f'several configs have one name: {", ".join(names)}')
    # Import what was just checked.
    from mmengine.logging import MMLogger

    from anchorformer_mm.analysis.complexity import (
        complexity_table,
        count_complexity,
        in_words,
    )
    from anchorformer_mm.apis import build_model, read_config

    # The libraries' own words would stand above the table.
    MMLogger.get_instance('mmengine', log_level='WARNING')
    costs, errors = {}, []
    for config in args.configs:
        try:
            cfg = read_config(config, args.cfg_options)
            model = build_model(cfg, backbone_only=args.backbone_only)
            costs[config] = count_complexity(model, args.shape)
        except UsageError as error:
            errors.append(f'{config}: {error}')
    if costs:
        rows = {Path(config).stem: cost for config, cost in costs.items()}
        convention = CONVENTION.format(*args.shape)
        print(complexity_table(rows), convention, sep='\n\n')
        print('\nRan and was not counted, by calls:')
        for name, cost in rows.items():
            print(f'- {name}: {in_words(cost.not_counted)}')
    if costs and args.json is not None:
        models = [
            dict(
                config=config,
                cfg_options=args.cfg_options or {},
                backbone_only=args.backbone_only,
                shape=args.shape,
                flops=2 * cost.macs,
                **asdict(cost),
            )
            for config, cost in costs.items()
        ]
        with replacing(args.json) as path:
            path.write_text(f'{json.dumps(models, indent=2)}\n')
    if errors:
        raise UsageError('\nerror: '.join(errors))


if __name__ == '__main__':
    run_command_line(main)
