"""Building and counting the rows, and what is recorded of each."""

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from anchorformer_mm.analysis.complexity import (
    build_from_config,
    count_complexity,
)
from anchorformer_mm.analysis.config_models import read_config
from anchorformer_mm.analysis.paper_tables import (
    ablations,
    ade20k,
    coco,
    imagenet,
    pairs,
)
from anchorformer_mm.analysis.paper_tables.row import TWICE, Row, Table
from anchorformer_mm.utils.environment import LIBRARIES
from anchorformer_mm.utils.errors import UsageError

TABLES: Mapping[str, Table] = {
    'table1': imagenet.TABLE,
    'table2': coco.TABLE,
    'table3': ade20k.TABLE,
    'table4': ablations.PARTS,
    'table5': ablations.ANCHORS,
    'figure5': pairs.TABLE,
}
# The order in which a model is evaluated: anchors in that of their paper, or
# folded.
AS_BUILT, FOLDED = 'as built', 'folded'
COUNTED_BY = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')


def build(row: Row, root: Path) -> nn.Module:
    """Build the model of a row.

    Args:
        row: One that has code here.
        root: Folder with ``configs/``.
    """
    if row.constructor is not None:
        return row.constructor()
    config = row.config if '::' in row.config else root / row.config
    return build_from_config(read_config(config, row.overrides))


def measure(row: Row, table: Table, root: Path) -> dict[str, Any] | None:
    """Count a row; None if there is no code for it here.

    Args:
        row: Of the table.
        table: Gives the size of the image, if the row does not.
        root: Folder with ``configs/``.

    Returns:
        dict: Whole numbers: ``'params'`` with those of an auxiliary head,
        which ``'auxiliary'`` are, and ``'macs'`` by order of evaluation.

    Raises:
        UsageError: The model cannot be built or counted.
    """
    if not row.is_built:
        return None
    try:
        cost = count_complexity(build(row, root), row.shape or table.shape)
    except UsageError as error:
        raise UsageError(f'{row.name}: {error}') from error
    macs = {AS_BUILT: cost.macs}
    if cost.folded is not None:
        macs[FOLDED] = cost.folded
    return dict(
        params=cost.params,
        trainable=cost.trainable,
        auxiliary=cost.auxiliary,
        macs=macs,
    )


def record(
    row: Row, table: Table, measured: Mapping[str, Any] | None
) -> dict[str, Any]:
    """All that is known of a row, for JSON.

    Args:
        row: Of the table.
        table: As in :func:`measure`.
        measured: From :func:`measure`.
    """
    constructor = row.constructor
    return dict(
        name=row.name,
        claimed=dict(row.claimed),
        claimed_by=row.claimed_by if row.claimed else None,
        flops_are=row.flops_are,
        config=row.config,
        overrides=dict(row.overrides),
        constructor=constructor
        and f'{constructor.__module__}.{constructor.__qualname__}',
        what=row.what,
        beside=row.beside,
        shape=list(row.shape or table.shape),
        measured=measured,
        deviation_percent=_deviations(row, measured),
        reason=row.reason,
        trained=dict(row.trained),
    )


def _deviations(
    row: Row, measured: Mapping[str, Any] | None
) -> dict[str, float]:
    """What is counted above what is printed, percent."""
    if measured is None:
        return {}
    flops = measured['macs'][AS_BUILT] * (2 if row.flops_are == TWICE else 1)
    ratios = {
        key: counted / unit / row.claimed[claim] - 1
        for key, claim, counted, unit in (
            ('params', 'params_m', measured['params'], 1e6),
            ('flops', 'flops_g', flops, 1e9),
        )
        if claim in row.claimed
    }
    return {key: round(100 * ratio, 2) for key, ratio in ratios.items()}


def measure_table(
    name: str, root: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Count all rows of a table.

    Args:
        name: Of :data:`TABLES`.
        root: Folder with ``configs/``.
        progress: Called with a line for each row.

    Returns:
        dict: ``'versions'`` of the libraries, and the ``'rows'``.
    """
    table = TABLES[name]
    rows = []
    for number, row in enumerate(table.rows, 1):
        progress(f'{name} {number}/{len(table.rows)}: {row.name}')
        rows.append(record(row, table, measure(row, table, root)))
    return dict(versions=_versions(), rows=rows)


def _versions() -> dict[str, str]:
    """Distributions and versions of the libraries that build and count."""
    found = {}
    for name in COUNTED_BY:
        library = LIBRARIES[name]
        for distribution in filter(None, (library.fork, *library.originals)):
            try:
                found[distribution] = version(distribution)
                break
            except PackageNotFoundError:
                continue
    return found
