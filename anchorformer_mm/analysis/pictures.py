"""Pictures of data, predictions and training runs, on captioned sheets."""

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.font_manager import (
    FontProperties,
    findSystemFonts,
    get_font,
)
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from PIL import Image, ImageDraw, ImageFont

from anchorformer_mm.apis import load_model, to_rgb
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import replacing

if TYPE_CHECKING:
    from mmdet.structures import DetDataSample
    from mmpretrain.structures import DataSample
    from mmseg.structures import SegDataSample

# Pixels: of letters, a line, a letter's width, and white around pictures.
_FONT, _LINE, _CHARACTER, _MARGIN, _NARROWEST = 12, 16, 7, 8, 120
SWATCH = 10
# Latin, Greek, Cyrillic and more: comes with matplotlib.
DEJAVU = Path(matplotlib.get_data_path()) / 'fonts/ttf/DejaVuSans.ttf'
# Of styles other than the plain one; the last draws frames for letters.
_STYLES = re.compile(
    'bold|italic|oblique|light|thin|black|mono|serif|lastresort', re.I
)
# Shades of grey, and px of a stripe.
_DARK, _LIGHT, _STRIPE = 110, 190, 3

# A label, and its RGB colour or a picture (SWATCH, SWATCH, 3), or nothing.
LegendEntry = tuple[str, Sequence[int] | np.ndarray | None]


@dataclass(frozen=True)
class Panel:
    """A picture with what is written about it.

    Attributes:
        image: RGB, uint8, shape (h, w, 3).
        title: Lines above it; long ones are broken.
        colour: Name of the colour of the title, and of a frame unless black.
        legend: Below it, pairs of a label and its RGB colour.
    """

    image: np.ndarray
    title: str = ''
    colour: str = 'black'
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
        smooth: Interpolate, or repeat pixels.
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
    width = _MARGIN + max(map(len, rows)) * (slot + _MARGIN)
    strips = [_row(row, slot, width) for row in rows]
    below = _legend(legend, width - 2 * _MARGIN)
    height = sum(strip.height for strip in strips) + below.height
    sheet = Image.new('RGB', (width, height + 2 * _MARGIN), 'white')
    y = _MARGIN
    for strip in strips:
        sheet.paste(strip, (0, y))
        y += strip.height
    sheet.paste(below, (_MARGIN, y))
    with replacing(path) as temporary:
        sheet.save(temporary)


@cache
def _system_fonts() -> list[Path]:
    paths = map(Path, findSystemFonts())
    return sorted(paths, key=lambda p: (bool(_STYLES.search(p.stem)), p.name))


def find_fonts(
    texts: Iterable[str], font: str | Path | None = None
) -> dict[str, Path]:
    """Font file for each text, the first with all its characters and digits.

    Args:
        texts: Names of classes, for example. Those that no font can write are
            not in the result.
        font: Tried before DejaVu Sans and the fonts of the system.

    Raises:
        UsageError: ``font`` is no font.
    """

    def candidates() -> Iterator[Path]:
        yield from [Path(font)] if font else []
        yield DEJAVU
        yield from _system_fonts()

    found, missing = {}, set(texts)
    for path in candidates():
        if not missing:
            break
        try:
            glyphs = get_font(path).get_charmap().keys()
        except (OSError, RuntimeError) as error:
            if path == Path(font or ''):
                raise UsageError(f'{font} is no font') from error
            continue
        for text in list(missing):
            needed = {ord(c) for c in f'{text}0123456789.' if not c.isspace()}
            if needed <= glyphs:
                found[text] = path
                missing.remove(text)
    return found


@cache
def _font(text: str = '') -> ImageFont.FreeTypeFont:
    path = find_fonts([text]).get(text, DEJAVU)
    return ImageFont.truetype(str(path), _FONT)


def _row(row: Sequence[Panel], slot: int, width: int) -> Image.Image:
    """Panels beside each other: titles, pictures, legends."""
    titles = [
        [
            part
            for line in panel.title.splitlines()
            for part in textwrap.wrap(line, slot // _CHARACTER)
        ]
        for panel in row
    ]
    legends = [_legend(panel.legend, slot) for panel in row]
    top = _LINE * max(map(len, titles))
    height = max(panel.image.shape[0] for panel in row)
    below = max(legend.height for legend in legends)
    size = width, top + height + below + _MARGIN
    strip = Image.new('RGB', size, 'white')
    draw = ImageDraw.Draw(strip)
    for i, panel in enumerate(row):
        h, w = panel.image.shape[:2]
        x = _MARGIN + i * (slot + _MARGIN)
        # Titles of one line stand on the picture, not at the top.
        y = top - _LINE * len(titles[i])
        for j, line in enumerate(titles[i]):
            at = x, y + j * _LINE
            draw.text(at, line, panel.colour, _font(line))
        strip.paste(Image.fromarray(panel.image), (x, top))
        if panel.colour != 'black':
            box = (x, top, x + w - 1, top + h - 1)
            draw.rectangle(box, outline=panel.colour, width=3)
        strip.paste(legends[i], (x, top + h + 4))
    return strip


def _legend(entries: Sequence[LegendEntry], room: int) -> Image.Image:
    """Labels in columns as wide as the longest of them."""
    before, after = SWATCH + 4, 12
    most = (room - before) // _CHARACTER
    entries = [
        (name if len(name) <= most else f'{name[: most - 1]}…', colour)
        for name, colour in entries
    ]
    lengths = [_font(name).getlength(name) for name, _ in entries]
    widest = max(lengths, default=0)
    column = before + round(widest) + after
    columns = max((room + after) // column, 1)
    lines = -(-len(entries) // columns)
    picture = Image.new('RGB', (room, lines * _LINE), 'white')
    draw = ImageDraw.Draw(picture)
    for i, (label, colour) in enumerate(entries):
        x, y = i % columns * column, i // columns * _LINE
        if colour is not None:
            # A thin border: there are white and very light classes.
            box = (x, y, x + SWATCH + 1, y + SWATCH + 1)
            draw.rectangle(box, fill=(160, 160, 160))
            swatch = np.broadcast_to(np.uint8(colour), (SWATCH, SWATCH, 3))
            picture.paste(Image.fromarray(swatch.copy()), (x + 1, y + 1))
        draw.text((x + before, y - 1), label, 'black', _font(label))
    return picture


def hatching(height: int, width: int) -> np.ndarray:
    """Diagonal stripes in grey, RGB, uint8: no palette has them."""
    y, x = np.indices((height, width))
    light = (x + y) // _STRIPE % 2 == 0
    return cv2.merge([np.where(light, _LIGHT, _DARK).astype(np.uint8)] * 3)


def colour_labels(
    labels: np.ndarray, palette: Sequence[Sequence[int]], cell: int
) -> np.ndarray:
    """Draw every pixel in the colour of its class.

    Args:
        labels: Classes, whole numbers from 0, shape (h, w). What is no class
            of the palette, such as the 255 of ignored pixels, is hatched.
        palette: RGB colour of each class, shape (C, 3).
        cell: Longer side of the picture, px.
    """
    # Scaled first: stripes keep their width, and colours do not mix.
    labels = fit(labels.astype(np.int16), cell, smooth=False)
    picture = hatching(*labels.shape)
    known = (labels >= 0) & (labels < len(palette))
    picture[known] = np.asarray(palette, np.uint8)[labels[known]]
    return picture


def class_legend(
    counts: np.ndarray,
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> list[LegendEntry]:
    """Names and colours of the classes that occur, in their order.

    Named are the 20 with most of the pixels, ``counts``, shape (C,).
    """
    kept = np.argsort(-counts, kind='stable')[:20]
    entries: list[LegendEntry] = [
        (names[i], palette[i]) for i in sorted(kept) if counts[i]
    ]
    others = np.count_nonzero(counts) - len(entries)
    return [*entries, (f'and {others} more', None)] if others else entries


def palette_of(meta: dict, classes: Sequence[str]) -> np.ndarray:
    """Colours of classes, RGB, uint8, (C, 3); without any, those of mmseg."""
    from mmseg.datasets import BaseSegDataset

    palette = meta.get('palette') or ()
    if len(palette) != len(classes):
        metainfo = dict(classes=list(classes))
        made_up = BaseSegDataset(metainfo=metainfo, lazy_init=True)
        palette = made_up.metainfo['palette']
    return np.array(palette, np.uint8)


# Images, groups of panels beside each other, and longer side of a panel, px.
_LAYOUTS = dict(
    mmdet=(12, 3, 320), mmpretrain=(32, 8, 128), mmseg=(12, 2, 192)
)


def draw_predictions(
    cfg: Config,
    checkpoint: str | Path,
    path: str | Path,
    *,
    score_thr: float = 0.4,
) -> None:
    """Draw test images with their ground truth and the model's predictions.

    Twelve images, evenly spread over the test set, stand beside the ground
    truth and the detections or label maps; or 32 of a classifier have the
    true and the found class, red where they differ.

    Args:
        cfg: Config of mmdet, mmpretrain or mmseg with a ``test_dataloader``.
        checkpoint: Its weights.
        path: PNG to write.
        score_thr: Least score of a drawn detection.

    Raises:
        UsageError: The config is of no such library, the data set has no
            classes, or an image not one of them as its ground truth.
    """
    scope = cfg.get('default_scope')
    if scope not in _LAYOUTS:
        raise UsageError(
            'predictions are drawn for detectors, classifiers and '
            f'segmentors; {cfg.filename} is of {scope}'
        )
    most, columns, cell = _LAYOUTS[scope]
    model = load_model(cfg, checkpoint)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    meta = dataset.metainfo
    if scope == 'mmseg' and not meta.get('classes'):
        raise UsageError(
            'the data set of test_dataloader has no classes: give them as '
            'metainfo=dict(classes=...)'
        )
    groups, counts = [], 0
    last = len(dataset) - 1
    for i in np.linspace(0, last, min(most, last + 1)).round():
        data = dataset[int(i)]
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([data]))[0].cpu()
        if scope == 'mmdet':
            groups.append(_detections(sample, meta, cell, score_thr))
        elif scope == 'mmpretrain':
            image = fit(to_rgb(data['inputs']), cell)
            groups.append([_classification(image, sample, meta)])
        else:
            ignored = getattr(dataset, 'ignore_index', 255)
            panels, found = _segmentation(sample, meta, cell, ignored)
            groups.append(panels)
            counts = counts + found
    starts = range(0, len(groups), columns)
    rows = [sum(groups[i : i + columns], []) for i in starts]
    legend = []
    if scope == 'mmseg':
        legend = class_legend(counts[:-1], meta['classes'], meta['palette'])
        if counts[-1]:
            legend.append(('ignored', hatching(SWATCH, SWATCH)))
    draw_panels(rows, path, legend=legend)


def _detections(
    sample: 'DetDataSample', meta: dict, cell: int, score_thr: float
) -> list[Panel]:
    image = cv2.imread(sample.img_path)[..., ::-1]
    scale = cell / max(image.shape[:2])
    image = fit(image, cell)
    fonts = find_fonts(meta.get('classes') or ())

    def panel(title: str, parts: list[Part]) -> Panel:
        # Masks are of the size of the file.
        parts = [
            Part(part.label, part.value, part.box * scale)
            for part in parts
            if part.box is not None
        ]
        return Panel(draw_parts(image, parts, meta, fonts), title)

    true = sample.gt_instances.numpy()
    pairs = zip(true.labels.tolist(), true.bboxes, strict=True)
    return [
        panel('ground truth', [Part(label, box=box) for label, box in pairs]),
        panel(
            f'prediction (score > {score_thr})', parts_of(sample, score_thr)
        ),
    ]


def _classification(
    image: np.ndarray, sample: 'DataSample', meta: dict
) -> Panel:
    names = dict(enumerate(meta.get('classes') or ()))
    truth = sample.get('gt_label')
    if truth is None or len(truth) != 1:
        raise UsageError(f'an image must have one class, gt_label={truth}')
    true, found = int(truth), int(sample.pred_score.argmax())
    return Panel(
        image,
        f'true: {names.get(true, true)}\n'
        f'found: {names.get(found, found)} {sample.pred_score[found]:.0%}',
        colour='black' if true == found else 'red',
    )


def _segmentation(
    sample: 'SegDataSample', meta: dict, cell: int, ignored: int
) -> tuple[list[Panel], np.ndarray]:
    """Panels of one image, and pixels of each class and of none, (C + 1,)."""
    name = sample.img_path
    if 'gt_sem_seg' not in sample:
        raise UsageError(
            f'{name} has no ground truth: test_dataloader has no '
            'LoadAnnotations in its pipeline'
        )
    panels = [Panel(fit(cv2.imread(name)[..., ::-1], cell), Path(name).stem)]
    none = len(meta['classes'])
    counts = 0
    for title, labels in (
        ('ground truth', sample.gt_sem_seg.data[0]),
        ('prediction', sample.pred_sem_seg.data[0]),
    ):
        labels = labels.numpy().astype(np.int64)
        # Whatever stands for ignored pixels, it is no class.
        labels[(labels == ignored) | (labels > none)] = none
        counts = counts + np.bincount(labels.ravel(), minlength=none + 1)
        picture = colour_labels(labels, meta['palette'], cell)
        panels.append(Panel(picture, title))
    return panels, counts


@dataclass(frozen=True)
class Part:
    """An object, a region or a class found in an image.

    Attributes:
        label: Number of its class, from 0.
        value: Score, or share of the pixels of a region.
        box: x1, y1, x2, y2 in px.
        mask: Its pixels, bool, shape (h, w).
    """

    label: int
    value: float | None = None
    box: np.ndarray | None = None
    mask: np.ndarray | None = None


def parts_of(
    sample: BaseDataElement, score_thr: float = 0.3, top: int = 5
) -> list[Part]:
    """List what is predicted for an image, the best or largest first.

    Args:
        sample: From :func:`anchorformer_mm.apis.predict`.
        score_thr: Least score of a detection.
        top: Classes wanted of a classifier.

    Raises:
        UsageError: It has no objects, no label map and no class scores.
    """
    if 'pred_instances' in sample:
        found = sample.pred_instances
        found = found[found.scores >= score_thr]
        found = found[found.scores.argsort(descending=True)].numpy()
        masks = [None] * len(found)
        if 'masks' in found:
            masks = found.masks.astype(bool)
        # Models of masks alone have empty boxes.
        empty = 'masks' in found and not found.bboxes.any()
        boxes = [None] * len(found) if empty else found.bboxes
        rows = zip(found.labels, found.scores, boxes, masks, strict=True)
        return [Part(int(label), float(v), b, m) for label, v, b, m in rows]
    if 'pred_sem_seg' in sample:
        labels = sample.pred_sem_seg.data.squeeze(0).numpy()
        kinds, counts = np.unique(labels, return_counts=True)
        order = np.argsort(-counts, kind='stable')
        return [
            Part(int(k), n / labels.size, mask=labels == k)
            for k, n in zip(kinds[order], counts[order].tolist(), strict=True)
        ]
    if 'pred_score' in sample:
        scores = sample.pred_score
        best = scores.topk(min(top, len(scores))).indices.tolist()
        return [Part(label, float(scores[label])) for label in best]
    raise UsageError(
        'a model must find objects, label pixels or classify, got '
        f'{", ".join(sample.keys())}'
    )


def class_name(meta: Mapping[str, Any], label: int) -> str:
    """Name of a class, or ``'class 3'`` without one."""
    names = meta.get('classes') or ()
    return str(names[label]) if label < len(names) else f'class {label}'


def draw_parts(
    image: np.ndarray,
    parts: Sequence[Part],
    meta: Mapping[str, Any],
    fonts: Mapping[str, Path],
) -> np.ndarray:
    """Draw on an image what was found in it, RGB, uint8, shape (h, w, 3).

    Args:
        image: RGB, uint8, shape (h, w, 3). Of a classifier small ones are
            enlarged.
        parts: The first ones are drawn on top.
        meta: ``classes`` and ``palette``, if any, of the model.
        fonts: From :func:`find_fonts`; a class whose name is not among them
            is drawn as ``'class 3'``.
    """
    if parts and parts[0].box is None and parts[0].mask is None:
        image = fit(image, max(*image.shape[:2], 320))
    h, w = image.shape[:2]
    parts = parts[::-1]
    palette = meta.get('palette')
    if not isinstance(palette, Sequence) or isinstance(palette, str):
        palette = ()

    def colour(label: int) -> tuple[int, ...]:
        if label < len(palette):
            return tuple(palette[label])
        # Those of neighbouring numbers are far apart.
        rgb = matplotlib.colormaps['hsv'](label * 0.618 % 1, bytes=True)
        return tuple(map(int, rgb[:3]))

    canvas = Visualizer()
    canvas.set_image(image)
    masked = [part for part in parts if part.mask is not None]
    if masked:
        canvas.draw_binary_masks(
            np.stack([part.mask for part in masked]),
            colors=[colour(part.label) for part in masked],
            alphas=0.5,
        )
    boxed = [part for part in parts if part.box is not None]
    boxes = np.array([part.box for part in boxed]).reshape(-1, 2, 2)
    boxes = boxes.clip(0, (w - 1, h - 1))
    if boxed:
        canvas.draw_bboxes(
            np.concatenate([boxes.min(axis=1), boxes.max(axis=1)], axis=1),
            edge_colors=[colour(part.label) for part in boxed],
            line_widths=max(2, round(max(h, w) / 400)),
            alpha=1,
        )
    size = max(9, (h * w) ** 0.5 / 40)
    for i, part in enumerate(parts):
        x, y, below = 4, 4 + (len(parts) - 1 - i) * 1.6 * size, True
        if part.box is not None:
            x, y = part.box[:2].clip(0, (w - 1, h - 1)).tolist()
            below = y < 1.6 * size
        elif part.mask is not None:
            # The middle of the row that has most of it.
            y = int(part.mask.sum(axis=1).argmax())
            x, below = float(np.median(part.mask[y].nonzero()[0])), y < h / 2
        name = class_name(meta, part.label)
        text = name if name in fonts else f'class {part.label}'
        text += '' if part.value is None else f' {part.value:.2f}'
        # Beyond the right border it would be cut off.
        right = x + 0.6 * size * len(text) > w
        canvas.draw_texts(
            # No formula, as matplotlib makes of what is between dollars.
            text.replace('$', r'\$'),
            np.array([w - 3 if right else x, y]),
            font_sizes=size * 72 / canvas.dpi,
            colors='w',
            vertical_alignments='top' if below else 'bottom',
            horizontal_alignments='right' if right else 'left',
            bboxes=dict(facecolor='black', pad=1, linewidth=0),
            font_properties=FontProperties(fname=fonts.get(name, DEJAVU)),
        )
    return canvas.get_image()


# The one figure of each task, in the order of preference.
METRICS = ('coco/bbox_mAP', 'pascal_voc/mAP', 'mIoU', 'accuracy/top1')
# mmseg and mmpretrain log these from 0 to 100, mmdet its mAP from 0 to 1.
PERCENT = ('mIoU', 'accuracy/top1')


@dataclass
class RunLog:
    """Scalars of a run.

    Attributes:
        train: Logged training records by iteration.
        val: Logged evaluation records by iteration, see :func:`read_run`.
    """

    train: dict[int, dict[str, Any]] = field(default_factory=dict)
    val: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """Name of the figure to report.

        Raises:
            UsageError: The run has evaluated none that is known.
        """
        names = {name for record in self.val.values() for name in record}
        for name in METRICS:
            if name in names:
                return name
        raise UsageError(
            f'the run has no evaluation with one of {METRICS}, only '
            f'{sorted(names)}'
        )

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Iterations and values of a scalar, of training or evaluation."""
        records = (*self.train.items(), *self.val.items())
        values = {i: record[name] for i, record in records if name in record}
        return sorted(values), [values[i] for i in sorted(values)]


def run_parts(work_dir: str | Path) -> list[Path]:
    """Folders of the last training, one for each start: begun, resumed, ...

    Args:
        work_dir: Folder of the run; every start that logged something left a
            folder with ``vis_data/scalars.json`` there.

    Raises:
        UsageError: There is no log.
    """
    parts: list[Path] = []
    for log in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        config = log.with_name('config.py')
        if config.is_file():
            cfg = Config.fromfile(config, import_custom_modules=False)
            if not cfg.get('resume'):
                parts.clear()
        parts.append(log.parent.parent)
    if not parts:
        raise UsageError(f'no records in {work_dir}/*/vis_data/scalars.json')
    return parts


def read_run(work_dir: str | Path) -> RunLog:
    """Read the scalars of the last training, later parts of it winning.

    Args:
        work_dir: Folder of the run, see :func:`run_parts`.

    Returns:
        RunLog: Where mmengine counts evaluations in iterations, which
        ``LoggerHook(log_metric_by_epoch=False)`` asks for, they stand at the
        iteration they were made after. Where it counts them in epochs, its
        default, they stand at the last *logged* training iteration before
        them; ``LoggerHook(ignore_last=False)`` logs the last of each epoch.

    Raises:
        UsageError: There is no log.
    """
    run = RunLog()
    for part in run_parts(work_dir):
        iteration = 0
        log = part / 'vis_data/scalars.json'
        for line in log.read_text().splitlines():
            record = json.loads(line)
            if 'loss' in record:
                iteration = record['step']
                run.train[iteration] = record
            else:
                # No record says what its `step` counts; epochs that are done
                # are never more than the iterations logged in them.
                run.val[max(iteration, record['step'])] = record
    if not run.train and not run.val:
        raise UsageError(f'no records in {work_dir}/*/vis_data/scalars.json')
    return run


def in_words(metric: str, value: float) -> str:
    """Write a logged figure, of one of :data:`METRICS`, with its unit."""
    return f'{value:.2f}%' if metric in PERCENT else f'{value:.3f}'


def draw_curve(run: RunLog, path: str | Path) -> None:
    """Draw the losses (left) and the evaluated figure (right axis) as PNG."""
    figure = Figure(figsize=(8, 4.5), layout='constrained')
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
    place = iterations[values.index(best)], best
    metric.annotate(in_words(run.metric, best), place, ha='right', va='bottom')
    unit = ' (%)' if run.metric in PERCENT else ''
    metric.set(ylabel=f'{run.metric}{unit}', ylim=(0, 1.1 * best or None))
    losses.set(ylim=(0, None))
    losses.grid(alpha=0.3)
    figure.legend(loc='outside lower center', ncols=3, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
