"""Loss and accuracy of a run over its iterations, as a picture."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from anchorformer_mm.analysis.run_log import RunLog
from anchorformer_mm.utils.files import replacing


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
    names = sorted({n for r in run.train.values() for n in r if 'loss' in n})
    for i, name in enumerate(names):
        width = 2 if name == 'loss' else 1
        losses.plot(*run.curve(name), f'C{i}', lw=width, label=name)
    iterations, values = run.curve(run.metric)
    metric.plot(iterations, values, 'k.-', label=run.metric)
    best = max(values)
    metric.annotate(
        f'{best:.3f}',
        (iterations[values.index(best)], best),
        xytext=(0, 4),
        textcoords='offset points',
        ha='right',
    )
    metric.set(ylabel=run.metric, ylim=(0, 1.1 * best or None))
    losses.set(ylim=(0, None))
    losses.grid(alpha=0.3)
    handles = [*losses.get_lines(), *metric.get_lines()]
    figure.legend(
        handles=handles,
        loc='outside lower center',
        ncols=len(handles),
        fontsize=8,
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
