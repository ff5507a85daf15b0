"""Picture a training run: curve.png, predictions.png, and its figure."""

import argparse
from pathlib import Path

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line


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


def newest(work_dir: Path, pattern: str, what: str) -> Path:
    """The file that was written last."""
    files = sorted(work_dir.glob(pattern), key=lambda p: p.stat().st_mtime)
    if not files:
        raise UsageError(f'{work_dir} has no {what} ({pattern})')
    return files[-1]


def main() -> None:
    args = parse_args()
    check_environment(['torch', 'mmengine', 'mmcv'])
    # Import what was just checked.
    from anchorformer_mm.analysis.pictures import (
        draw_curve,
        draw_predictions,
        in_words,
        read_run,
    )
    from anchorformer_mm.apis import read_config

    run = read_run(args.work_dir)
    config = newest(args.work_dir, '*.py', 'config')
    checkpoint = newest(args.work_dir, '*.pth', 'checkpoint')
    if (args.work_dir / 'last_checkpoint').is_file():
        last = (args.work_dir / 'last_checkpoint').read_text().strip()
        checkpoint = args.work_dir / Path(last).name
    curve = args.work_dir / 'curve.png'
    predictions = args.work_dir / 'predictions.png'
    draw_curve(run, curve)
    cfg = read_config(config)
    draw_predictions(cfg, checkpoint, predictions, score_thr=args.score_thr)
    iterations, values = run.curve(run.metric)
    log = newest(args.work_dir, '*/*.log', 'log')
    figure = in_words(run.metric, values[-1])
    print(f'{run.metric}: {figure} after {iterations[-1]} iterations')
    print(checkpoint, log, curve, predictions, sep='\n')


if __name__ == '__main__':
    run_command_line(main)
