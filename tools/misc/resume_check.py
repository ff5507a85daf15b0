"""Prove that killed and resumed trainings end with the bits of unbroken ones.

Each config is trained as it is, and then as often as asked with a SIGKILL at
a random moment, and resumed. Use small ones: --cfg-options shortens them.
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
    launch.add_common_arguments(parser)
    args = parser.parse_args()
    if args.kills < 1:
        raise UsageError(f'--kills must be at least 1, got {args.kills}')
    if args.launcher != 'none':
        raise UsageError('--launcher must be none: one process is checked')

    top = Path(args.work_dir or 'work_dirs/resume_check')
    differences = 0
    for config in args.configs:
        args.config, args.work_dir = config, str(top)
        cfg = launch.load_config(args, splits=('train', 'val'))
        folder = top / Path(config).stem
        kills = check_resuming(cfg, folder, args.kills, args.seed)
        print(f'\n{config}\n')
        print(
            markdown_table(
                ('Killed in', 'Unfinished files', 'Resumed run'),
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
