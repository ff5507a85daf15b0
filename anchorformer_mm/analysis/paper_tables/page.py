"""The parts of the page of results that are made from the counted rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from anchorformer_mm.analysis.paper_tables.measure import (
    AS_BUILT,
    FOLDED,
    TABLES,
)
from anchorformer_mm.analysis.paper_tables.pairs import CLAIMED_SAVINGS
from anchorformer_mm.analysis.paper_tables.row import MACS, TWICE
from anchorformer_mm.utils.tables import markdown_table

# Percent; what is further off is explained under the table.
TOLERANCE = 5
Record = Mapping[str, Any]


def block(name: str, counted: Mapping[str, Any]) -> str:
    """Write a table with what is to be said of it, and its command.

    Args:
        name: Of the table.
        counted: From
            :func:`~anchorformer_mm.analysis.paper_tables.measure.measure_table`.
    """
    rows = counted['rows']
    table = _pairs(rows) if name == 'figure5' else _table(name, rows)
    parts = [table, *_reasons(rows), _command(name, counted['versions'])]
    return '\n\n'.join(parts)


def needs_reason(row: Record) -> bool:
    """Whether a row is off by more than 5 %, and not by rounding."""
    return any(
        abs(deviation) > TOLERANCE and not _is_rounded(row, key)
        for key, deviation in row['deviation_percent'].items()
    )


def _counted(row: Record, key: str) -> float | None:
    """Millions of parameters, or 1e9 operations as the row prints them."""
    measured = row['measured']
    if measured is None:
        return None
    if key == 'params':
        return measured['params'] / 1e6
    macs = measured['macs'][AS_BUILT] / 1e9
    return 2 * macs if row['flops_are'] == TWICE else macs


def _is_rounded(row: Record, key: str) -> bool:
    claimed = row['claimed'][dict(params='params_m', flops='flops_g')[key]]
    digits = len(str(float(claimed)).partition('.')[2])
    return round(_counted(row, key), digits) == claimed


def _table(name: str, rows: Sequence[Record]) -> str:
    accuracies = TABLES[name].accuracies
    header = ['model', 'input', 'Params (M), printed', 'counted', 'off']
    header += ['FLOPs (G), printed', 'MACs (G), counted', 'off', 'folded']
    header += [f'{title}, printed' for title in accuracies.values()]
    header += ['trained here', 'counted from']
    return markdown_table(header, [_line(r, list(accuracies)) for r in rows])


def _line(row: Record, accuracies: Sequence[str]) -> list[str]:
    claimed, measured = row['claimed'], row['measured']
    flops = _printed(claimed.get('flops_g'))
    if row['flops_are'] != MACS:
        flops += f' ({row["flops_are"]})'
    params = macs = folded = '-'
    if measured is not None:
        params = f'{measured["params"] / 1e6:.3f}'
        macs = f'{measured["macs"][AS_BUILT] / 1e9:.3f}'
        if FOLDED in measured['macs']:
            folded = f'{measured["macs"][FOLDED] / 1e9:.3f}'
    trained = ', '.join(map(_printed, row['trained'].values()))
    return [
        _name(row),
        _size(row['shape']) if measured is not None else '-',
        *(_printed(claimed.get('params_m')), params, _off(row, 'params')),
        *(flops, macs, _off(row, 'flops'), folded),
        *(_printed(claimed.get(key)) for key in accuracies),
        trained or '-',
        _source(row),
    ]


def _name(row: Record) -> str:
    ours = (row['config'] or '').startswith('configs/anchor')
    ours = ours or 'AnchorFormer' in row['name']
    name = f'**{row["name"]}**' if ours else row['name']
    other = row['claimed_by'] not in (None, 'the paper')
    return f'{name} (not in the paper)' if other else name


def _size(shape: Sequence[int]) -> str:
    height, width = shape
    return str(height) if height == width else f'{height} x {width}'


def _printed(value: float | None) -> str:
    return '-' if value is None else str(value)


def _off(row: Record, key: str) -> str:
    deviation = row['deviation_percent'].get(key)
    if deviation is None:
        return '-'
    rounded = abs(deviation) > TOLERANCE and _is_rounded(row, key)
    return f'{deviation:+.1f} %' + (' (rounding)' if rounded else '')


def _source(row: Record) -> str:
    if row['measured'] is None:
        return row['reason'] or 'not in these libraries'
    config = f'`{row["config"]}`' if row['config'] else ''
    return ', '.join(filter(None, (config, row['what'])))


def _pairs(rows: Sequence[Record]) -> str:
    by_name = {row['name']: row for row in rows}
    header = ['pair', 'Params (M)', 'with anchors', 'MACs (G)']
    header += ['with anchors', 'fewer, counted', 'fewer, printed']
    header += ['folded', 'fewer, folded', 'configs']
    lines = []
    for ours in rows:
        if not ours['beside']:
            continue
        theirs = by_name[ours['beside']]
        params = [r['measured']['params'] / 1e6 for r in (theirs, ours)]
        macs = [r['measured']['macs'][AS_BUILT] / 1e9 for r in (theirs, ours)]
        low, high = CLAIMED_SAVINGS[theirs['name'].partition('-')[0]]
        line = [f'{ours["name"]}, {theirs["name"]}']
        line += [f'{n:.3f}' for n in (*params, *macs)]
        line += [
            f'{100 * (1 - macs[1] / macs[0]):.1f} %',
            f'{low} to {high} %',
            *_folded_savings(ours, macs[0]),
            f'{_source(ours)}; {_source(theirs)}',
        ]
        lines.append(line)
    return markdown_table(header, lines)


def _folded_savings(row: Record, macs: float) -> tuple[str, str]:
    """Folded MACs (G) of a row, and what they save of others (G)."""
    if FOLDED not in row['measured']['macs']:
        return '-', '-'
    folded = row['measured']['macs'][FOLDED] / 1e9
    return f'{folded:.3f}', f'{100 * (1 - folded / macs):.1f} %'


def _reasons(rows: Sequence[Record]) -> list[str]:
    """A list of the rows that are off, those of one reason together."""
    names: dict[str, list[str]] = {}
    for row in rows:
        if needs_reason(row):
            reason = row['reason'] or 'not known'
            names.setdefault(reason, []).append(row['name'])
    if not names:
        return []
    lines = [f'- {"; ".join(of)}: {why}.' for why, of in names.items()]
    title = f'Off by more than {TOLERANCE} %, and not by rounding:'
    return [title, '\n'.join(lines)]


def _command(name: str, versions: Mapping[str, str]) -> str:
    tool = 'python tools/analysis_tools/paper_tables.py --tables'
    with_what = ', '.join(f'{k} {v}' for k, v in versions.items())
    return (
        f'```\n{tool} {name.removeprefix("table")}\n```\n\n'
        f'Counted with {with_what}.'
    )
