"""Prove that killed and resumed trainings end with the bits of unbroken ones.

Each config is trained as it is, and then as often as asked with a SIGKILL, or
every fourth time a SIGTERM, at a random moment, and resumed. Use small ones:
--cfg-options shortens them.
"""

import argparse
from pathlib import Path

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.tables import markdown_table


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    # Imports what was just checked.
    from anchorformer_mm.engine import launch
    from anchorformer_mm.engine.resuming.check import check_resuming
    from anchorformer_mm.engine.resuming.killing import MAX_PROCESSES

    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('configs', nargs='+', help='config files')
    parser.add_argument(
        '--kills', type=int, default=3, help='killed trainings a config'
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='of the random moments'
    )
    parser.add_argument(
        '--processes',
        type=int,
        default=1,
        metavar='N',
        help='train in N processes of torchrun, kill one of them, and have '
        'it start all of them again',
    )
    launch.add_common_arguments(parser)
    args = parser.parse_args()
    if args.kills < 1:
        raise UsageError(f'--kills must be at least 1, got {args.kills}')
    if not 1 <= args.processes <= MAX_PROCESSES:
        raise UsageError(
            f'--processes must lie between 1 and {MAX_PROCESSES}, got '
            f'{args.processes}'
        )
    if args.launcher != 'none':
        raise UsageError('--launcher must be none: --processes launches them')

    top = Path(args.work_dir or 'work_dirs/resume_check')
    differences = 0
    for config in args.configs:
        args.config, args.work_dir = config, str(top)
        cfg = launch.load_config(args, splits=('train', 'val'))
        if args.processes > 1:
            cfg.launcher = 'pytorch'
        folder = top / Path(config).stem
        kills = check_resuming(
            cfg, folder, args.kills, args.seed, args.processes
        )
        print(f'\n{config}\n')
        print(
            markdown_table(
                ('Ended in', 'Unfinished files', 'Resumed run'),
                [
                    (k.moment, str(k.unfinished), k.difference or 'equal')
                    for k in kills
                ],
            )
        )
        equal = sum(k.difference is None for k in kills)
        print(f'\n{equal} of {len(kills)} equal the unbroken run')
        differences += len(kills) - equal
    if differences:
        raise SystemExit(1)


if __name__ == '__main__':
    run_command_line(main)
