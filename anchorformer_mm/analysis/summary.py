"""The end of a training in figures, pictures and the next commands."""

import re
from logging import Logger
from pathlib import Path

from anchorformer_mm.analysis.pictures import (
    RunLog,
    draw_curve,
    draw_predictions,
    in_words,
    read_run,
    run_parts,
)
from anchorformer_mm.apis import read_config
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.text import listing

# What metrics call the figures of single classes.
_OF_CLASS = r'coco/(.+)_precision|IoU/(.+)'


def report_run(work_dir: str | Path, logger: Logger) -> None:
    """Print the summary of a training; without one, log why."""
    try:
        print(*summarise_run(work_dir), sep='\n')
    # The training is complete, whatever its pictures meet.
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        logger.warning(f'trained, but not summarised: {reason}')


def summarise_run(
    work_dir: str | Path, *, score_thr: float = 0.4
) -> list[str]:
    """Draw ``curve.png`` and ``predictions.png``; give lines to print.

    The figure and the pictures are of the best checkpoint, or of the last one
    where none is called the best, and of the last training in the folder.

    Args:
        work_dir: Folder of the run.
        score_thr: Least score of a drawn detection.

    Returns:
        list[str]: The figure, those of the classes if the evaluator gives
        them, checkpoints of earlier trainings, files and the next commands.

    Raises:
        UsageError: There is no log, evaluation, config or checkpoint.
    """
    work_dir = Path(work_dir)
    run, parts = read_run(work_dir), run_parts(work_dir)
    config = _by_age(work_dir, '*.py', 'config')[-1]
    # Written when the training begins.
    first = parts[0] / 'vis_data/config.py'
    began = first.stat().st_mtime if first.is_file() else 0
    saved = _by_age(work_dir, '[!.]*.pth', 'checkpoint')
    earlier = [path.name for path in saved if path.stat().st_mtime < began]
    ours = [path for path in saved if path.name not in earlier]
    if not ours:
        raise UsageError(f'{work_dir} has no checkpoint of the last training')
    checkpoint = ours[-1]
    if (work_dir / 'last_checkpoint').is_file():
        last = (work_dir / 'last_checkpoint').read_text().strip()
        checkpoint = work_dir / Path(last).name
    best = [path for path in ours if path.name.startswith('best_')]
    checkpoint = best[-1] if best else checkpoint
    lines = _figures(run, is_best=bool(best))
    if earlier:
        lines.append(f'of an earlier training: {listing(earlier)}')
    curve, predictions = work_dir / 'curve.png', work_dir / 'predictions.png'
    draw_curve(run, curve)
    cfg = read_config(config)
    draw_predictions(cfg, checkpoint, predictions, score_thr=score_thr)
    files = [checkpoint, parts[-1] / f'{parts[-1].name}.log']
    lines += [*map(str, files), str(curve), str(predictions)]
    command = 'next: python -m anchorformer_mm'
    lines.append(f'{command} predict {config} {checkpoint} IMAGE_OR_FOLDER')
    return [*lines, f'{command} test {config} {checkpoint}']


def _figures(run: RunLog, *, is_best: bool) -> list[str]:
    """The best or last figure, and those of the classes with it."""
    iterations, values = run.curve(run.metric)
    index = values.index(max(values)) if is_best else -1
    figure = in_words(run.metric, values[index])
    line = f'{run.metric}: {figure} after {iterations[index]} iterations'
    if index not in (-1, len(values) - 1):
        line += f' (the last: {in_words(run.metric, values[-1])})'
    record = run.val[iterations[index]]
    classes = [
        f'{match[1] or match[2]} {in_words(run.metric, value)}'
        for key, value in record.items()
        if (match := re.fullmatch(_OF_CLASS, key))
    ]
    return [line, *([f'by class: {listing(classes, 30)}'] if classes else [])]


def _by_age(work_dir: Path, pattern: str, what: str) -> list[Path]:
    """Files, the one that was written last at the end."""
    files = sorted(work_dir.glob(pattern), key=lambda p: p.stat().st_mtime)
    if not files:
        raise UsageError(f'{work_dir} has no {what} ({pattern})')
    return files
