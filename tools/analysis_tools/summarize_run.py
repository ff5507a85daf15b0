"""Picture a training run: curve.png, predictions.png, and its figure."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from anchorformer_mm.analysis.curve import draw_curve, in_words
from anchorformer_mm.analysis.run_log import read_run
from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line

if TYPE_CHECKING:
    from mmengine.config import Config


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
    """The file that was written last.

    Raises:
        UsageError: There is none.
    """
    files = sorted(work_dir.glob(pattern), key=lambda p: p.stat().st_mtime)
    if not files:
        raise UsageError(f'{work_dir} has no {what} ({pattern})')
    return files[-1]


def draw_predictions(
    cfg: 'Config', checkpoint: Path, path: Path, score_thr: float
) -> None:
    """Draw what the model of a run finds in validation images.

    Raises:
        UsageError: It is no detector, classifier or segmentor, or its library
            is missing.
    """
    scope = cfg.get('default_scope')
    if scope not in ('mmdet', 'mmpretrain', 'mmseg'):
        raise UsageError(
            'predictions are drawn for detectors, classifiers and '
            f'segmentors; {cfg.filename} is of {scope}'
        )
    check_environment([scope])
    # These libraries take seconds to import: after the cheap checks.
    if scope == 'mmdet':
        from anchorformer_mm.analysis.detections import draw_detections

        draw_detections(cfg, checkpoint, path, score_thr=score_thr)
    elif scope == 'mmpretrain':
        from anchorformer_mm.analysis.classifications import (
            draw_classifications,
        )

        draw_classifications(cfg, checkpoint, path)
    else:
        from anchorformer_mm.analysis.segmentations import draw_segmentations

        draw_segmentations(cfg, checkpoint, path)


def main() -> None:
    args = parse_args()
    run = read_run(args.work_dir)
    config = newest(args.work_dir, '*.py', 'config')
    checkpoint = newest(args.work_dir, '*.pth', 'checkpoint')
    if (args.work_dir / 'last_checkpoint').is_file():
        last = (args.work_dir / 'last_checkpoint').read_text().strip()
        checkpoint = args.work_dir / Path(last).name
    curve = args.work_dir / 'curve.png'
    predictions = args.work_dir / 'predictions.png'
    draw_curve(run, curve)
    check_environment(['mmengine'])
    # Imports what was just checked.
    from mmengine.config import Config

    cfg = Config.fromfile(config)
    draw_predictions(cfg, checkpoint, predictions, args.score_thr)
    iterations, values = run.curve(run.metric)
    log = newest(args.work_dir, '*/*.log', 'log')
    figure = in_words(run.metric, values[-1])
    print(f'{run.metric}: {figure} after {iterations[-1]} iterations')
    for path in (checkpoint, log, curve, predictions):
        print(path)


if __name__ == '__main__':
    run_command_line(main)
