"""Sum up a training: its figure, curve.png, predictions.png.

That is how tools/train.py ends, too.
"""

import argparse
from pathlib import Path

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import run_command_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', help='folder of the run', type=Path)
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.4,
        help='least score of a drawn detection',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_environment(['torch', 'mmengine', 'mmcv'])
    # Imports what was just checked.
    from anchorformer_mm.analysis.summary import summarise_run

    print(*summarise_run(args.work_dir, score_thr=args.score_thr), sep='\n')


if __name__ == '__main__':
    run_command_line(main)
