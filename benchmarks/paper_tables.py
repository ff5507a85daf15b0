"""Count the models of the paper's tables beside what the paper prints.

Writes docs/results.json and the generated parts of docs/results.md. What is
printed stands in benchmarks/data/paper_tables.yml. Needs no data and no
weights.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from common import (
    ROOT,
    progress,
    read_text,
    replace_blocks,
    update_files,
    versions,
)
from mmengine.logging import MMLogger

from anchorformer_mm.analysis.complexity import count_complexity
from anchorformer_mm.apis import (
    build_model,
    read_config,
)
from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.text import markdown_table

DATA = Path(__file__).with_name('data') / 'paper_tables.yml'
# Percent; what is further off, and not by rounding, is explained.
TOLERANCE = 5
UNITS = dict(params=1e6, macs=1e9)
Record = Mapping[str, Any]


def load_printed() -> dict[str, Any]:
    """Read the rows of the tables as they are printed."""
    return yaml.safe_load(read_text(DATA))


def count_row(row: Record, shape: Sequence[int]) -> dict[str, int] | None:
    """Count the model of a row; None if there is no code for it here.

    Args:
        row: With ``config``, if there is, and its ``overrides``.
        shape: Height and width of the image, px.

    Raises:
        UsageError: The model cannot be built or counted.
    """
    if 'config' not in row:
        return None
    config = row['config']
    config = config if '::' in config else ROOT / config
    try:
        cfg = read_config(config, row.get('overrides'))
        alone = row.get('part') == 'backbone'
        model = build_model(cfg, backbone_only=alone)
        cost = count_complexity(model, shape)
    except UsageError as error:
        raise UsageError(f'{row["name"]}: {error}') from error
    counted = dict(params=cost.params, macs=cost.macs)
    counted |= {} if cost.folded is None else dict(folded=cost.folded)
    return counted | ({'auxiliary': cost.auxiliary} if cost.auxiliary else {})


def record(
    row: Record, table: Record, counted: Mapping[str, int] | None
) -> dict[str, Any]:
    """All that is known of a row, for JSON."""
    off = {}
    for key, unit in UNITS.items():
        printed = _printed(row, key)
        if counted is not None and printed is not None:
            off[key] = round(100 * (counted[key] / unit / printed - 1), 2)
    shape = row.get('shape', table['shape'])
    return dict(row) | dict(shape=shape, counted=counted, off_percent=off)


def _printed(row: Record, key: str) -> float | None:
    """Printed millions of parameters or 1e9 multiply-accumulates."""
    if key == 'params':
        return row.get('params_m')
    flops = row.get('flops_g')
    return flops / 2 if flops and row.get('twice_macs') else flops


def _is_off(row: Record, key: str) -> bool:
    """Tell if a row is off by more than 5 %, and not by rounding."""
    if abs(row['off_percent'].get(key, 0)) <= TOLERANCE:
        return False
    printed = _printed(row, key)
    counted = row['counted'][key] / UNITS[key]
    digits = len(str(float(printed)).partition('.')[2])
    return round(counted, digits) != printed


def _is_ours(row: Record) -> bool:
    return row.get('config', '').startswith('configs/')


# The page


def table_block(rows: Sequence[Record], table: Record, reasons: Record) -> str:
    """A table of our rows and what is off, and the other rows in words."""
    metric, title = next(iter(table['accuracies'].items()))
    header = ['model', 'Params (M)', 'paper', 'off', 'MACs (G)', 'paper']
    header += ['off', 'folded', f'{title}, paper']
    there = [row for row in rows if row['counted']]
    lines, others = [], []
    off: dict[str, list[str]] = {}
    for row in there:
        line = _line(row, table, metric)
        if _is_off(row, 'params') or _is_off(row, 'macs'):
            why = row.get('reason', 'not known')
            off.setdefault(reasons.get(why, why), []).append(row['name'])
        elif not _is_ours(row):
            others.append(f'{line[0]} ({line[1]} M, {line[4]} G)')
            continue
        lines.append(line)
    missing = [row['name'] for row in rows if not row['counted']]
    notes = [f'Off: {"; ".join(n)}: {why}.' for why, n in off.items()]
    notes += [f'Within 5 %: {"; ".join(others)}.'] if others else []
    notes += [f'Without code here: {"; ".join(missing)}.'] if missing else []
    list_of_notes = '\n'.join(f'- {note}' for note in notes)
    return f'{markdown_table(header, lines)}\n\n{list_of_notes}'


def _line(row: Record, table: Record, metric: str) -> list[str]:
    name = row['name']
    if list(row['shape']) != list(table['shape']):
        name += '' if 'px' in name else f', {row["shape"][0]} px'
    for key in ('claimed_by', 'what'):
        name += f', {row[key]}' if key in row else ''
    if _is_ours(row):
        name = f'**{name}**'
    counted = row['counted']
    figures = []
    for key, unit in UNITS.items():
        printed, off = _printed(row, key), row['off_percent'].get(key)
        twice = key == 'macs' and row.get('twice_macs')
        figures += [
            f'{counted[key] / unit:.3f}',
            '-' if printed is None else f'{printed:g}' + '*' * bool(twice),
            '-' if off is None else f'{off:+.1f} %',
        ]
    folded = counted.get('folded')
    figures.append('-' if folded is None else f'{folded / 1e9:.3f}')
    return [name, *figures, str(row.get(metric, '-'))]


def pairs_block(rows: Sequence[Record], savings: Record) -> str:
    """A table of what anchors save of the models that they are put into."""
    by_name = {row['name']: row for row in rows}
    header = ['model', 'MACs (G)', 'with anchors', 'fewer', 'folded', 'fewer']
    lines = []
    for ours in rows:
        if 'beside' not in ours:
            continue
        macs = by_name[ours['beside']]['counted']['macs']
        line = [ours['beside'], f'{macs / 1e9:.3f}']
        for each in ('macs', 'folded'):
            count = ours['counted'][each]
            fewer = 100 * (1 - count / macs)
            line += [f'{count / 1e9:.3f}', f'{fewer:.1f} %']
        low, high = savings[ours['beside'].partition('-')[0]]
        lines.append([*line, f'{low} to {high} %'])
    return markdown_table([*header, 'fewer, paper'], lines)


def make_files(docs: Path, tables: Mapping[str, Any]) -> dict[Path, str]:
    """The JSON and the page with the counted tables.

    Args:
        docs: Folder with both; what else they hold stays.
        tables: Counted tables by name, or some of them.
    """
    printed = load_printed()
    blocks = {}
    for name, counted in tables.items():
        table = printed['tables'][name]
        blocks[name] = (
            pairs_block(counted['rows'], printed['savings'])
            if name == 'figure5'
            else table_block(counted['rows'], table, printed['reasons'])
        )
    page = replace_blocks(read_text(docs / 'results.md'), blocks)
    numbers = load_numbers(docs) | printed['about'] | {'tables': tables}
    text = json.dumps(numbers, indent=1, ensure_ascii=False)
    # What holds neither lists nor objects goes on one line.
    text = re.sub(
        r'[\[{][^\[\]{}]*[\]}]', lambda found: ' '.join(found[0].split()), text
    )
    return {docs / 'results.json': f'{text}\n', docs / 'results.md': page}


def load_numbers(docs: Path) -> dict[str, Any]:
    """Read the JSON of the results.

    Raises:
        UsageError: It is not there, or not from this script.
    """
    path = docs / 'results.json'
    try:
        numbers = json.loads(read_text(path))
        numbers['tables'].keys()
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f'{path} is not from this script: {error}') from error
    return numbers


def main(argv: Sequence[str] | None = None) -> None:
    printed = load_printed()
    parser = argparse.ArgumentParser(description=__doc__)
    names = dict(choices=[*printed['tables']], default=[*printed['tables']])
    text = 'which to count (default: all); the others stay as they are'
    parser.add_argument('--tables', nargs='+', **names, help=text)
    text = 'count nothing; fail if printed rows, page and JSON disagree'
    parser.add_argument('--check', action='store_true', help=text)
    parser.add_argument('--docs', type=Path, default=ROOT / 'docs')
    args = parser.parse_args(argv)
    # The libraries' own words would be on the screen between the rows.
    MMLogger.get_instance('mmengine', log_level='WARNING')
    before = load_numbers(args.docs)['tables']
    tables = {}
    for name, table in printed['tables'].items():
        known = before.get(name, {})
        counts = {r['name']: r['counted'] for r in known.get('rows', ())}
        anew = name in args.tables and not args.check
        rows = []
        for row in table['rows']:
            if anew:
                progress(f'{name}: {row["name"]}')
                shape = row.get('shape', table['shape'])
                counts[row['name']] = count_row(row, shape)
            elif row['name'] not in counts:
                raise UsageError(
                    f'{args.docs / "results.json"}: {name} lacks '
                    f'{row["name"]}; count it with --tables {name}'
                )
            rows.append(record(row, table, counts[row['name']]))
        by = versions() if anew else known['versions']
        tables[name] = dict(versions=by, rows=rows)
    files = make_files(args.docs, tables)
    update_files(files, args.check, 'paper_tables.py')


if __name__ == '__main__':
    run_command_line(main)
