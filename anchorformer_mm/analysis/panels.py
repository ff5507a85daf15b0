"""Sheets of captioned pictures, pixel for pixel."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle

from anchorformer_mm.utils.files import replacing

# Pixels. A power of two as resolution keeps the sheet's size exact.
_DPI, _FONT, _CHARACTER, _LINE, _MARGIN = 128, 12, 7, 16, 8
_BEFORE_LABEL, _AFTER_LABEL, _BORDER, _NARROWEST = 4, 12, 160, 120
SWATCH = 10

# A label, and its RGB colour or a picture (SWATCH, SWATCH, 3), or nothing.
LegendEntry = tuple[str, Sequence[int] | np.ndarray | None]


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
    legend: Sequence[LegendEntry] = ()


def cell_size(rows: int, columns: int) -> int:
    """Side of a picture in px, such that a sheet of them stays handy."""
    longest = 12_000 / max(rows, columns)
    even = (16_000_000 / (rows * columns)) ** 0.5
    return int(np.clip(min(longest, even), 96, 224))


def fit(image: np.ndarray, cell: int, *, smooth: bool = True) -> np.ndarray:
    """Scale a picture until its longer side has ``cell`` pixels.

    Args:
        image: RGB, uint8, shape (h, w, 3); or any map, shape (h, w).
        cell: Longer side wanted, px.
        smooth: Whether to interpolate, or to repeat pixels.

    Returns:
        np.ndarray: RGB, uint8, shape (cell, w', 3) or (h', cell, 3); or the
        map, shape (cell, w') or (h', cell).
    """
    h, w = image.shape[:2]
    scale = cell / max(h, w)
    size = max(round(w * scale), 1), max(round(h * scale), 1)
    if not smooth:
        method = cv2.INTER_NEAREST_EXACT
    else:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=method)


def draw_panels(
    rows: Sequence[Sequence[Panel]],
    path: str | Path,
    *,
    legend: Sequence[LegendEntry] = (),
) -> None:
    """Lay pictures out in rows and write them as one.

    Args:
        rows: Panels beside each other; pictures keep their size.
        path: PNG to write.
        legend: Of the whole sheet, below all rows.
    """
    widths = [panel.image.shape[1] for row in rows for panel in row]
    # What is written needs its place below and above a narrow picture too.
    slot = max(_NARROWEST, *widths)
    bands = [_Band.of(row, slot) for row in rows]
    width = _MARGIN + max(map(len, rows)) * (slot + _MARGIN)
    bottom = _Legend.of(legend, width - 2 * _MARGIN)
    below = bottom.height + _MARGIN if legend else 0
    height = _MARGIN + sum(band.height for band in bands) + below
    sheet = _Sheet(width, height)
    top = _MARGIN
    for row, band in zip(rows, bands, strict=True):
        for i, (panel, title) in enumerate(zip(row, band.titles, strict=True)):
            x = _MARGIN + i * (slot + _MARGIN)
            # Titles of one line stand on the picture, not at the top.
            y = top + (band.title_lines - len(title)) * _LINE
            for line in title:
                sheet.write(line, x, y, panel.colour)
                y += _LINE
            h, w = panel.image.shape[:2]
            sheet.pixels[y : y + h, x : x + w] = panel.image
            if panel.framed:
                sheet.frame((x, y, w, h), panel.colour)
            band.legends[i].draw(sheet, x, y + h + 4)
        top += band.height
    bottom.draw(sheet, _MARGIN, top + 4)
    sheet.save(path)


class _Sheet:
    """White paper, (height, width) px, to paste and write on."""

    def __init__(self, width: int, height: int) -> None:
        self.pixels = np.full((height, width, 3), 255, np.uint8)
        self._figure = Figure((width / _DPI, height / _DPI), dpi=_DPI)
        FigureCanvasAgg(self._figure)

    def write(self, text: str, x: int, y: int, colour: str = 'black') -> None:
        """One line, (x, y) being the upper left corner of its letters."""
        height, width = self.pixels.shape[:2]
        self._figure.text(
            x / width,
            1 - y / height,
            text,
            color=colour,
            fontsize=_FONT * 72 / _DPI,
            va='top',
            parse_math=False,
        )

    def frame(self, box: tuple[int, int, int, int], colour: str) -> None:
        height, width = self.pixels.shape[:2]
        x, y, w, h = box
        self._figure.add_artist(
            Rectangle(
                (x / width, 1 - (y + h) / height),
                w / width,
                h / height,
                fill=False,
                edgecolor=colour,
                linewidth=3 * 72 / _DPI,
            )
        )

    def save(self, path: str | Path) -> None:
        self._figure.figimage(self.pixels, origin='upper', zorder=-1)
        with replacing(path) as temporary:
            self._figure.savefig(temporary, dpi=_DPI)


@dataclass(frozen=True)
class _Legend:
    """Labels in columns as wide as the longest of them, px."""

    entries: Sequence[LegendEntry]
    column: int
    columns: int

    @classmethod
    def of(cls, entries: Sequence[LegendEntry], room: int) -> '_Legend':
        before = SWATCH + _BEFORE_LABEL
        entries = [(_clip(name, room - before), c) for name, c in entries]
        widest = max((_width(name) for name, _ in entries), default=0)
        column = before + round(widest) + _AFTER_LABEL
        columns = max((room + _AFTER_LABEL) // column, 1)
        return cls(entries, column, columns)

    @property
    def height(self) -> int:
        return -(-len(self.entries) // self.columns) * _LINE

    def draw(self, sheet: _Sheet, left: int, top: int) -> None:
        for i, (label, colour) in enumerate(self.entries):
            line, column = divmod(i, self.columns)
            x, y = left + column * self.column, top + line * _LINE
            if colour is not None:
                # A thin border: there are white and very light classes.
                border = sheet.pixels[y - 1 :, x - 1 :]
                border[: SWATCH + 2, : SWATCH + 2] = _BORDER
                sheet.pixels[y:, x:][:SWATCH, :SWATCH] = colour
            sheet.write(label, x + SWATCH + _BEFORE_LABEL, y - 1)


def _width(text: str) -> float:
    """Of a line, px."""
    font = FontProperties(size=_FONT * 72 / _DPI)
    renderer = RendererAgg(1, 1, _DPI)
    return renderer.get_text_width_height_descent(text, font, False)[0]


def _clip(text: str, room: int) -> str:
    """As much of a line as there is room for, px."""
    if _width(text) <= room:
        return text
    kept = next(
        n for n in range(len(text), -1, -1) if _width(f'{text[:n]}…') <= room
    )
    return f'{text[:kept]}…'


@dataclass(frozen=True)
class _Band:
    """What one row takes: its broken titles, legends, and its height, px."""

    titles: list[list[str]]
    title_lines: int
    legends: list[_Legend]
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
        legends = [_Legend.of(panel.legend, slot) for panel in row]
        legend = max(legend.height for legend in legends)
        picture = max(panel.image.shape[0] for panel in row)
        height = picture + title_lines * _LINE + legend + _MARGIN
        return cls(titles, title_lines, legends, height)
