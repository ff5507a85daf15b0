"""The page, its JSON and its plots: written together, and compared."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anchorformer_mm.analysis.paper_tables.measure import TABLES, record
from anchorformer_mm.analysis.paper_tables.page import block
from anchorformer_mm.analysis.paper_tables.plot import (
    TITLES,
    digest,
    draw,
    drawn_digest,
    points,
)
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import replacing
from anchorformer_mm.utils.marked_blocks import marked_blocks, replace_blocks

PAGE, NUMBERS = 'results.md', 'results.json'
ABOUT = {
    'source': 'arXiv 2505.16463, tables 1 to 5 and figure 5',
    'claimed': 'printed figures: params_m in millions, flops_g in 1e9, '
    'accuracies in percent; none of these accuracies was reproduced here',
    'measured': 'whole numbers for one image of the given shape (height, '
    'width; px): parameters, and multiply-accumulates of convolutions, '
    'linear layers and matrix products by order of evaluation: as built (of '
    'anchors the order of the paper) and folded, as it is deployed',
    'deviation_percent': 'counted above printed',
}


def picture(docs: Path, name: str) -> Path:
    """Where the plot of a table lies."""
    return docs / 'images' / f'paper_{name}.png'


def read(docs: Path) -> dict[str, Any]:
    """Read the counted tables by name, as far as there are any.

    Raises:
        UsageError: The file is no JSON of this tool.
    """
    path = docs / NUMBERS
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding='utf-8'))['tables']
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(f'{path} is not from this tool: {error}') from error


def write(docs: Path, tables: Mapping[str, Any]) -> None:
    """Write page, JSON and plots.

    Args:
        docs: Folder with the page, which has marked parts of the tables'
            names.
        tables: Counted tables by name.

    Raises:
        UsageError: The page is not there, or lacks a part.
    """
    tables = {name: tables[name] for name in TABLES if name in tables}
    page = replace_blocks(
        _read_page(docs), {n: block(n, t) for n, t in tables.items()}
    )
    numbers = json.dumps({**ABOUT, 'tables': tables}, indent=1)
    with replacing(docs / NUMBERS) as path:
        path.write_text(f'{numbers}\n', encoding='utf-8')
    for name in TITLES:
        if name in tables:
            draw(name, points(name, tables[name]), picture(docs, name))
    with replacing(docs / PAGE) as path:
        path.write_text(page, encoding='utf-8')


def _read_page(docs: Path) -> str:
    path = docs / PAGE
    if not path.is_file():
        raise UsageError(f'page not found: {path}')
    return path.read_text(encoding='utf-8')


def disagreements(docs: Path) -> list[str]:
    """Compare rows, JSON, page and plots; nothing is counted.

    Args:
        docs: Folder with the page.

    Returns:
        list[str]: A line for each thing that is not as the tool writes it.
    """
    tables = read(docs)
    blocks = marked_blocks(_read_page(docs))
    found = []
    for name in TABLES:
        if name not in tables:
            found.append(f'{docs / NUMBERS} lacks {name}')
            continue
        rows = tables[name]['rows']
        if not _as_decided(rows, name):
            found.append(f'{docs / NUMBERS}: {name} has other rows')
        elif blocks.get(name) != block(name, tables[name]):
            found.append(f'{docs / PAGE}: {name} is not that of the JSON')
        path = picture(docs, name)
        if name in TITLES and drawn_digest(path) != digest(
            points(name, tables[name])
        ):
            found.append(f'{path} is not that of the JSON')
    return found


def _as_decided(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether recorded rows are those of the code, but for what is counted."""
    table = TABLES[name]
    if [r['name'] for r in rows] != [r.name for r in table.rows]:
        return False
    return all(
        _plain(record(row, table, recorded['measured'])) == recorded
        for row, recorded in zip(table.rows, rows, strict=True)
    )


def _plain(value: Any) -> Any:
    """As it comes back from JSON: lists for tuples."""
    return json.loads(json.dumps(value))
