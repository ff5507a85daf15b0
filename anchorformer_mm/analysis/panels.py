"""Sheets of captioned pictures, pixel for pixel."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from anchorformer_mm.utils.files import replacing

# Pixels. A power of two as resolution keeps the sheet's size exact.
_DPI, _FONT, _CHARACTER, _LINE, _MARGIN, _SWATCH = 128, 12, 7, 16, 8, 10
_LEGEND_COLUMN, _NARROWEST = 70, 120


@dataclass(frozen=True)
class Panel:
    """A picture with what is written about it.

    Attributes:
        image: RGB, uint8, shape (h, w, 3).
        title: Lines above it; long ones are broken.
        colour: Of the title and the frame, as matplotlib names it.
        framed: Whether a frame is drawn around the picture.
        legend: Below it, pairs of a label and its RGB colour.
    """

    image: np.ndarray
    title: str = ''
    colour: str = 'black'
    framed: bool = False
    legend: Sequence[tuple[str, Sequence[int]]] = ()


def cell_size(rows: int, columns: int) -> int:
    """Side of a picture in px, such that a sheet of them stays handy."""
    longest = 12_000 / max(rows, columns)
    even = (16_000_000 / (rows * columns)) ** 0.5
    return int(np.clip(min(longest, even), 96, 224))


def fit(image: np.ndarray, cell: int, *, smooth: bool = True) -> np.ndarray:
    """Scale a picture until its longer side has ``cell`` pixels.

    Args:
        image: RGB, uint8, shape (h, w, 3).
        cell: Longer side wanted, px.
        smooth: Whether to interpolate, or to repeat pixels.

    Returns:
        np.ndarray: RGB, uint8, shape (cell, w', 3) or (h', cell, 3).
    """
    h, w = image.shape[:2]
    scale = cell / max(h, w)
    size = max(round(w * scale), 1), max(round(h * scale), 1)
    if not smooth:
        method = cv2.INTER_NEAREST_EXACT
    else:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=method)


def draw_panels(rows: Sequence[Sequence[Panel]], path: str | Path) -> None:
    """Lay pictures out in rows and write them as one.

    Args:
        rows: Panels beside each other; pictures keep their size.
        path: PNG to write.
    """
    widths = [panel.image.shape[1] for row in rows for panel in row]
    # What is written needs its place below and above a narrow picture too.
    slot = max(_NARROWEST, *widths)
    bands = [_Band.of(row, slot) for row in rows]
    width = _MARGIN + max(map(len, rows)) * (slot + _MARGIN)
    height = _MARGIN + sum(band.height for band in bands)
    sheet = np.full((height, width, 3), 255, np.uint8)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)

    def write(text: str, x: int, y: int, colour: str = 'black') -> None:
        figure.text(
            x / width,
            1 - y / height,
            text,
            color=colour,
            fontsize=_FONT * 72 / _DPI,
            va='top',
            parse_math=False,
        )

    top = _MARGIN
    for row, band in zip(rows, bands, strict=True):
        for i, (panel, title) in enumerate(zip(row, band.titles, strict=True)):
            x = _MARGIN + i * (slot + _MARGIN)
            # Titles of one line stand on the picture, not at the top.
            y = top + (band.title_lines - len(title)) * _LINE
            for line in title:
                write(line, x, y, panel.colour)
                y += _LINE
            h, w = panel.image.shape[:2]
            sheet[y : y + h, x : x + w] = panel.image
            if panel.framed:
                _frame(figure, sheet.shape, (x, y, w, h), panel.colour)
            for k, (label, colour) in enumerate(panel.legend):
                line, column = divmod(k, band.legend_columns)
                left = x + column * slot // band.legend_columns
                below = y + h + 4 + line * _LINE
                sheet[below:, left:][:_SWATCH, :_SWATCH] = colour
                write(label, left + _SWATCH + 4, below - 1)
        top += band.height
    figure.figimage(sheet, origin='upper', zorder=-1)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=_DPI)


@dataclass(frozen=True)
class _Band:
    """What one row takes: its broken titles, and its height in px."""

    titles: list[list[str]]
    title_lines: int
    legend_columns: int
    height: int

    @classmethod
    def of(cls, row: Sequence[Panel], slot: int) -> '_Band':
        titles = [
            [
                part
                for line in panel.title.splitlines()
                for part in textwrap.wrap(line, slot // _CHARACTER)
            ]
            for panel in row
        ]
        title_lines = max(map(len, titles))
        columns = max(slot // _LEGEND_COLUMN, 1)
        legend = max(-(-len(panel.legend) // columns) for panel in row)
        picture = max(panel.image.shape[0] for panel in row)
        height = picture + (title_lines + legend) * _LINE + _MARGIN
        return cls(titles, title_lines, columns, height)


def _frame(
    figure: Figure,
    shape: tuple[int, ...],
    box: tuple[int, int, int, int],
    colour: str,
) -> None:
    height, width = shape[:2]
    x, y, w, h = box
    figure.add_artist(
        Rectangle(
            (x / width, 1 - (y + h) / height),
            w / width,
            h / height,
            fill=False,
            edgecolor=colour,
            linewidth=3 * 72 / _DPI,
        )
    )
