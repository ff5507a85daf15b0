"""Accuracy over multiply-accumulates, as a picture.

Hollow is what somebody claims, also where the operations were counted here;
filled is an accuracy that a run of this project measured.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from anchorformer_mm.analysis.paper_tables.measure import AS_BUILT, TABLES
from anchorformer_mm.analysis.paper_tables.row import TWICE
from anchorformer_mm.utils.files import replacing

# What is plotted, in words.
TITLES = {
    'table1': 'ImageNet-1k, top-1 (%)',
    'table2': 'COCO, mAP (%)',
    'table3': 'ADE20K, mIoU (%)',
}
OURS, THEIRS, NOT_PRINTED = 'C3', '0.35', 'C0'
# Offsets of a label in points, and how it is aligned; the nearest first.
PLACES = [
    (dx * scale, dy * scale, ha)
    for scale in (1, 2, 3, 4.5)
    for dx, dy, ha in (
        (5, 0, 'left'),
        (4, 6, 'left'),
        (4, -6, 'left'),
        (-4, 6, 'right'),
        (-5, 0, 'right'),
        (-4, -6, 'right'),
        (0, 8, 'center'),
        (0, -8, 'center'),
    )
]


@dataclass(frozen=True)
class Point:
    """A model in the plane of MACs (1e9) and accuracy (percent).

    Attributes:
        printed: MACs that are printed; None if they are not.
        counted: MACs that are counted here; None if they are not.
        claimed: Accuracy that is printed; None if it is not.
        trained: Accuracy that was measured here; None if it was not.
        in_paper: Whether the paper has it.
    """

    name: str
    printed: float | None
    counted: float | None
    claimed: float | None
    trained: float | None
    in_paper: bool


def points(name: str, counted: Mapping[str, Any]) -> list[Point]:
    """The models of a table that have a place in its plot.

    Args:
        name: Of the table.
        counted: From
            :func:`~anchorformer_mm.analysis.paper_tables.measure.measure_table`.
    """
    metric = next(iter(TABLES[name].accuracies))
    found = []
    for row in counted['rows']:
        printed = row['claimed'].get('flops_g')
        if printed is not None and row['flops_are'] == TWICE:
            printed /= 2
        measured = row['measured']
        macs = measured and measured['macs'][AS_BUILT] / 1e9
        claimed = row['claimed'].get(metric)
        trained = row['trained'].get(metric)
        if claimed is not None or trained is not None:
            in_paper = row['claimed_by'] == 'the paper'
            found.append(
                Point(row['name'], printed, macs, claimed, trained, in_paper)
            )
    return found


def digest(found: Sequence[Point]) -> str:
    """What a plot of these points is recognised by."""
    text = json.dumps([asdict(point) for point in found])
    return hashlib.sha256(text.encode()).hexdigest()


def drawn_digest(path: Path) -> str | None:
    """The digest of the points that a picture shows.

    Args:
        path: PNG of :func:`draw`.

    Returns:
        str: None if there is no picture, or it does not tell.
    """
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.info.get('Points')


def draw(name: str, found: Sequence[Point], path: Path) -> None:
    """Draw the models of a table.

    Args:
        name: Of the table.
        found: From :func:`points`.
        path: PNG to write.
    """
    figure = Figure(figsize=(10, 7.5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(
        xlabel='multiply-accumulates (G)', ylabel=TITLES[name], xscale='log'
    )
    for point in found:
        _mark(axes, point)
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_minor_formatter('{x:g}')
    axes.tick_params(which='both', labelsize=8)
    axes.grid(alpha=0.25, which='both')
    axes.margins(x=0.12, y=0.06)
    figure.legend(handles=_legend(found), loc='outside lower center', ncols=2)
    # Labels are placed where the axes end up.
    figure.draw_without_rendering()
    figure.set_layout_engine('none')
    _label(axes, found)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={'Points': digest(found)})


def _colour(point: Point) -> str:
    if 'AnchorFormer' in point.name:
        return OURS
    return THEIRS if point.in_paper else NOT_PRINTED


def _mark(axes: Axes, point: Point) -> None:
    colour = _colour(point)
    hollow = dict(color=colour, fillstyle='none', linestyle='none')
    if point.claimed is not None:
        both = [x for x in (point.printed, point.counted) if x is not None]
        axes.plot(both, [point.claimed] * len(both), color=colour, lw=0.8)
        for marker, x in (('o', point.printed), ('D', point.counted)):
            if x is not None:
                axes.plot(x, point.claimed, marker=marker, ms=6, **hollow)
    if point.trained is not None and point.counted is not None:
        axes.plot(point.counted, point.trained, 'D', ms=6, color=colour)


def _legend(found: Sequence[Point]) -> list[Line2D]:
    kinds = [
        ('o', 'none', 'accuracy claimed, MACs printed'),
        ('D', 'none', 'accuracy claimed, MACs counted here'),
    ]
    if any(point.trained is not None for point in found):
        kinds.append(('D', 'full', 'accuracy and MACs measured here'))
    handles = [
        Line2D(
            *([], []),
            color='k',
            linestyle='none',
            marker=marker,
            fillstyle=fill,
            label=label,
        )
        for marker, fill, label in kinds
    ]
    colours = {
        OURS: 'AnchorFormer',
        THEIRS: 'others of the paper',
        NOT_PRINTED: 'not in the paper',
    }
    there = {_colour(point) for point in found}
    handles += [
        Line2D([], [], color=colour, label=label)
        for colour, label in colours.items()
        if colour in there
    ]
    return handles


def _label(axes: Axes, found: Sequence[Point]) -> None:
    """Write the names beside their marks, and not over one another."""
    renderer = axes.figure.canvas.get_renderer()
    taken = [_extent(axes, point) for point in found]
    # Ours first: they get the places that they want.
    for point in sorted(found, key=lambda p: _colour(p) != OURS):
        tried = []
        for dx, dy, ha in PLACES:
            text = axes.annotate(
                point.name,
                _places(point)[0],
                xytext=(dx, dy),
                textcoords='offset points',
                ha=ha,
                va='center',
                fontsize=7,
                color=_colour(point),
                arrowprops=dict(
                    arrowstyle='-', lw=0.4, color=_colour(point), shrinkA=0
                ),
            )
            # Without the line to the mark.
            text.update_positions(renderer)
            box = Text.get_window_extent(text)
            text.remove()
            outside = box.x0 < axes.bbox.x0 or box.x1 > axes.bbox.x1
            hidden = sum(box.overlaps(other) for other in taken)
            tried.append((hidden + len(found) * outside, text, box))
            if not tried[-1][0]:
                break
        _, text, box = min(tried, key=lambda each: each[0])
        axes.add_artist(text)
        taken.append(box)


def _extent(axes: Axes, point: Point) -> Bbox:
    """What the marks of a model and the line between them cover, px."""
    places = axes.transData.transform(_places(point))
    return Bbox([places.min(axis=0) - 6, places.max(axis=0) + 6])


def _places(point: Point) -> list[tuple[float, float]]:
    """Where its marks are, the one that is labelled first."""
    places = [
        (x, point.claimed)
        for x in (point.printed, point.counted)
        if x is not None and point.claimed is not None
    ]
    if point.trained is not None and point.counted is not None:
        places.append((point.counted, point.trained))
    return places
