"""Loss and accuracy of a run over its iterations, as a picture."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from anchorformer_mm.analysis.run_log import RunLog
from anchorformer_mm.utils.files import replacing

# mmseg and mmpretrain log these from 0 to 100, mmdet its mAP from 0 to 1.
PERCENT = ('mIoU', 'accuracy/top1')


def in_words(metric: str, value: float) -> str:
    """A figure as it is written: with its unit, so that nobody misreads it.

    Args:
        metric: One of :data:`~anchorformer_mm.analysis.run_log.METRICS`.
        value: As it was logged.
    """
    return f'{value:.2f}%' if metric in PERCENT else f'{value:.3f}'


def draw_curve(run: RunLog, path: str | Path) -> None:
    """Draw the losses (left) and the evaluated figure (right axis).

    Args:
        run: What was logged.
        path: PNG to write.

    Raises:
        UsageError: The run has no evaluation.
    """
    figure = Figure(figsize=(8, 4.5), layout='constrained')
    FigureCanvasAgg(figure)
    losses = figure.add_subplot(xlabel='iteration', ylabel='loss')
    metric = losses.twinx()
    names = {n for r in run.train.values() for n in r if 'loss' in n}
    # The sum first: a part that is all of it would otherwise be hidden.
    names = sorted(names, key=lambda name: (name != 'loss', name))
    for i, name in enumerate(names):
        width = 2 if name == 'loss' else 1
        losses.plot(*run.curve(name), f'C{i}', lw=width, label=name)
    iterations, values = run.curve(run.metric)
    metric.plot(iterations, values, 'k.-', label=run.metric)
    best = max(values)
    metric.annotate(
        in_words(run.metric, best),
        (iterations[values.index(best)], best),
        xytext=(0, 4),
        textcoords='offset points',
        ha='right',
    )
    unit = ' (%)' if run.metric in PERCENT else ''
    metric.set(ylabel=f'{run.metric}{unit}', ylim=(0, 1.1 * best or None))
    losses.set(ylim=(0, None))
    losses.grid(alpha=0.3)
    handles = [*losses.get_lines(), *metric.get_lines()]
    # Of 800 px, 40 for a line and its gaps and 7 for a letter.
    longest = max(len(handle.get_label()) for handle in handles)
    columns = max(800 // (40 + 7 * longest), 1)
    figure.legend(
        handles=handles,
        loc='outside lower center',
        ncols=min(len(handles), columns),
        fontsize=8,
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
