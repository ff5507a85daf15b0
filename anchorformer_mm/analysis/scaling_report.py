"""Cost over tokens as tables, a picture and a record."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from anchorformer_mm.analysis.scaling import Cell, fit_exponent
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import replacing
from anchorformer_mm.utils.tables import markdown_table

# Colours that also those tell apart who see no red or no green; what is drawn
# later is thinner, so that equal lines show.
_STYLES = dict(
    anchor=dict(color='#0072b2', marker='o', lw=5, ms=11),
    query=dict(color='#56b4e9', marker='s', lw=3, ms=7),
    vanilla=dict(color='#d55e00', marker='^', lw=1.5, ms=5),
    cluster=dict(color='#009e73', marker='D', lw=1.5, ms=5),
    paper=dict(color='#cc79a7', marker='v', lw=1.5, ms=5),
    plain=dict(color='#888888', marker='x', lw=1.5, ms=6),
)


def milliseconds(cell: Cell) -> float | None:
    """Median time of a pass; None if it was left out."""
    return 1e3 * cell.latency if cell.seconds else None


def mebibytes(cell: Cell) -> float | None:
    """Peak memory of a pass; None if it was left out."""
    if cell.reason is not None or cell.memory is None:
        return None
    return cell.memory / 2**20


QUANTITIES = {'time (ms)': milliseconds, 'memory (MiB)': mebibytes}


def scaling_tables(cells: Sequence[Cell]) -> str:
    """Write cells as tables of Markdown: a part and a quantity each.

    The last column is the exponent, see
    :func:`~anchorformer_mm.analysis.scaling.fit_exponent`.
    """
    tokens = sorted({cell.tokens for cell in cells})
    tables = []
    for part in _names(cells, 'part'):
        for quantity, value in QUANTITIES.items():
            header = [f'{part}, {quantity}', *(f'{n:,}' for n in tokens)]
            lines = []
            for kind, line in _lines(cells, part).items():
                found = {cell.tokens: value(cell) for cell in line}
                figures = [_figure(found.get(n)) for n in tokens]
                exponent = fit_exponent(line, value)
                end = '-' if exponent is None else f'{exponent:.2f}'
                lines.append([kind, *figures, end])
            tables.append(markdown_table([*header, 'exponent'], lines))
    return '\n\n'.join(tables)


def _figure(value: float | None) -> str:
    if value is None:
        return '-'
    return f'{value:,.1f}' if value < 1000 else f'{value:,.0f}'


def _names(cells: Sequence[Cell], attribute: str) -> list[str]:
    return list(dict.fromkeys(getattr(cell, attribute) for cell in cells))


def _lines(cells: Sequence[Cell], part: str) -> dict[str, list[Cell]]:
    """The cells of a part by their kinds."""
    own = [cell for cell in cells if cell.part == part]
    return {
        kind: [cell for cell in own if cell.kind == kind]
        for kind in _names(own, 'kind')
    }


def draw_scaling(cells: Sequence[Cell], path: str | Path) -> None:
    """Draw time (left) and memory (right), both axes logarithmic.

    Args:
        cells: What was measured; a row of panels for each part.
        path: Picture to write.
    """
    parts = _names(cells, 'part')
    figure = Figure(figsize=(10, 4.2 * len(parts)), layout='constrained')
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(parts), len(QUANTITIES), squeeze=False)
    for row, part in zip(panels, parts, strict=True):
        for axes, (quantity, value) in zip(
            row, QUANTITIES.items(), strict=True
        ):
            axes.set(xlabel='tokens n', ylabel=f'{quantity} of the {part}')
            _draw_panel(axes, _lines(cells, part), value)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _draw_panel(
    axes: Axes,
    lines: dict[str, list[Cell]],
    value: Callable[[Cell], float | None],
) -> None:
    axes.set_xscale('log', base=2)
    axes.set_yscale('log')
    ticks = set()
    for kind, line in lines.items():
        points = [(c.tokens, value(c)) for c in line if value(c)]
        if not points:
            continue
        exponent = fit_exponent(line, value)
        end = '' if exponent is None else f': $n^{{{exponent:.2f}}}$'
        style = _STYLES[kind]
        axes.plot(*zip(*points, strict=True), label=kind + end, **style)
        ticks.update(n for n, _ in points)
    axes.set_xticks(sorted(ticks), [f'{n:,}' for n in sorted(ticks)])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    if ticks:
        axes.legend()


def save_record(cells: Sequence[Cell], conditions: dict, path: Path) -> None:
    """Write cells and what they were measured under, as JSON."""
    record = dict(conditions, cells=[asdict(cell) for cell in cells])
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + '\n')


def load_record(path: Path, conditions: dict) -> list[Cell]:
    """Read the cells of an earlier run.

    Args:
        path: What :func:`save_record` wrote.
        conditions: Of this run; those of the file must be the same, but for
            the command.

    Raises:
        UsageError: They are not, or the file is none of this kind.
    """
    try:
        record = json.loads(path.read_text())
        cells = [Cell(**cell) for cell in record.pop('cells')]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f'{path} is no record to go on from: {type(error).__name__}: '
            f'{error}'
        ) from error
    for name, value in conditions.items():
        if name != 'command' and record.get(name) != value:
            raise UsageError(
                f'{path} was measured with {name} = {record.get(name)!r}, '
                f'not {value!r}: its cells cannot stand beside new ones'
            )
    return cells
