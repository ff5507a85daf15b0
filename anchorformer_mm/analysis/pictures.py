"""Pictures of data, predictions and training runs, on captioned sheets."""

import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findSystemFonts, get_font
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from PIL import Image, ImageDraw, ImageFont, ImageOps

from anchorformer_mm.apis import load_model, to_rgb
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import replacing

# Pixels: of letters, a line, a letter's width, and white around pictures.
_FONT, _LINE, _CHARACTER, _MARGIN, _NARROWEST = 12, 16, 7, 8, 120
SWATCH = 10
# Latin, Greek, Cyrillic and more: comes with matplotlib.
DEJAVU = Path(matplotlib.get_data_path()) / 'fonts/ttf/DejaVuSans.ttf'
# Of styles other than the plain one; the last draws frames for letters.
_STYLES = re.compile(
    'bold|italic|oblique|light|thin|black|mono|serif|lastresort', re.I
)

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
    width = max(map(len, rows)) * (slot + _MARGIN) - _MARGIN
    strips = [_row(row, slot, width) for row in rows]
    sheet = Image.fromarray(np.vstack([*strips, _legend(legend, width)]))
    with replacing(path) as temporary:
        ImageOps.expand(sheet, _MARGIN, 'white').save(temporary)


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
    own = [Path(font)] if font else []
    found, missing = {}, set(texts)
    for path in (*own, DEJAVU, *_system_fonts()):
        if not missing:
            break
        try:
            glyphs = get_font(path).get_charmap()
        except (OSError, RuntimeError) as error:
            if path in own:
                raise UsageError(f'{font} is no font') from error
            continue
        for text in list(missing):
            letters = ''.join(text.split()) + '0123456789.'
            if all(ord(letter) in glyphs for letter in letters):
                found[text] = path
                missing.remove(text)
    return found


@cache
def _font(text: str) -> ImageFont.FreeTypeFont:
    path = find_fonts([text]).get(text, DEJAVU)
    return ImageFont.truetype(str(path), _FONT)


def _row(row: Sequence[Panel], slot: int, width: int) -> Image.Image:
    """Panels beside each other: titles, pictures, legends."""
    letters = slot // _CHARACTER
    titles = [
        '\n'.join(textwrap.fill(x, letters) for x in panel.title.splitlines())
        for panel in row
    ]
    legends = [_legend(panel.legend, slot) for panel in row]
    top = _LINE * max(title.count('\n') + 1 for title in titles)
    height = max(panel.image.shape[0] for panel in row)
    height += max(legend.height for legend in legends)
    strip = Image.new('RGB', (width, top + height + _MARGIN), 'white')
    draw = ImageDraw.Draw(strip)
    for i, (panel, title) in enumerate(zip(row, titles, strict=True)):
        h, w = panel.image.shape[:2]
        x = i * (slot + _MARGIN)
        # From the picture upwards.
        draw.text((x, top - 1), title, panel.colour, _font(title), 'ld')
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
    labels = [
        label if len(label) <= most else f'{label[: most - 1]}…'
        for label, _ in entries
    ]
    widest = max([_font(t).getlength(t) for t in labels], default=0)
    column = before + round(widest) + after
    columns = max((room + after) // column, 1)
    lines = -(-len(labels) // columns)
    picture = Image.new('RGB', (room, lines * _LINE), 'white')
    draw = ImageDraw.Draw(picture)
    for i, label in enumerate(labels):
        x, y = i % columns * column, i // columns * _LINE
        colour = entries[i][1]
        if colour is not None:
            # A thin border: there are white and very light classes.
            swatch = np.full((SWATCH + 2, SWATCH + 2, 3), 160, np.uint8)
            swatch[1:-1, 1:-1] = colour
            picture.paste(Image.fromarray(swatch), (x, y))
        draw.text((x + before, y - 1), label, 'black', _font(label))
    return picture


def distinct_colours(count: int) -> np.ndarray:
    """Colours that differ, RGB, uint8, (count, 3); the first stay the same."""
    i = np.arange(count)
    # The golden ratio spreads the hues of any number of colours.
    hsv = [i * 0.618034 % 1, 1 - i % 2 * 0.45, 1 - i // 2 % 2 * 0.4]
    return np.uint8(255 * hsv_to_rgb(np.stack(hsv, axis=1)))


def hatching(height: int, width: int) -> np.ndarray:
    """Diagonal stripes in grey, RGB, uint8: no palette has them."""
    y, x = np.indices((height, width))
    grey = np.where((x + y) // 3 % 2, 110, 190).astype(np.uint8)
    return cv2.merge([grey] * 3)


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


def palette_of(meta: Mapping[str, Any], classes: Sequence) -> np.ndarray:
    """Colours of classes, RGB, uint8, (C, 3); made up where there are none."""
    palette = meta.get('palette')
    # It may be 'random', or that of other classes.
    if isinstance(palette, (list, tuple)) and len(palette) == len(classes):
        return np.array(palette, np.uint8)
    return distinct_colours(len(classes))


# Images, panels beside each other, and longer side of a panel, px.
_LAYOUTS = dict(
    mmdet=(12, 6, 320), mmpretrain=(32, 8, 128), mmseg=(12, 6, 192)
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
    classes = meta.get('classes') or ()
    if scope == 'mmseg' and not classes:
        raise UsageError(
            'the data set of test_dataloader has no classes: give them as '
            'metainfo=dict(classes=...)'
        )
    panels, counts = [], np.zeros(len(classes) + 1, int)
    last = len(dataset) - 1
    for i in np.linspace(0, last, min(most, last + 1)).round():
        data = dataset[int(i)]
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([data]))[0].cpu()
        if scope == 'mmpretrain':
            image = fit(to_rgb(data['inputs']), cell)
            panels.append(_classification(image, sample, meta))
            continue
        image = cv2.imread(sample.img_path)[..., ::-1]
        scale = cell / max(image.shape)
        image = fit(image, cell)
        if scope == 'mmdet':
            panels += _detections(image, scale, sample, meta, score_thr)
        else:
            ignored = getattr(dataset, 'ignore_index', 255)
            panels += _segmentation(image, sample, meta, ignored, counts)
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    colours = *palette_of(meta, classes), hatching(SWATCH, SWATCH)
    legend = class_legend(counts, [*classes, 'ignored'], colours)
    draw_panels(rows, path, legend=legend)


def _detections(
    image: np.ndarray,
    scale: float,
    sample: BaseDataElement,
    meta: dict,
    score_thr: float,
) -> list[Panel]:
    true = sample.gt_instances.numpy()
    pairs = zip(true.labels.tolist(), true.bboxes, strict=True)
    parts = {
        'ground truth': [Part(label, box=box) for label, box in pairs],
        f'prediction (score > {score_thr})': parts_of(sample, score_thr),
    }
    fonts = find_fonts(meta.get('classes') or ())
    panels = []
    for title, found in parts.items():
        # Masks are of the size of the file.
        found = [
            Part(part.label, part.value, part.box * scale)
            for part in found
            if part.box is not None
        ]
        panels.append(Panel(draw_parts(image, found, meta, fonts), title))
    return panels


def _classification(
    image: np.ndarray, sample: BaseDataElement, meta: dict
) -> Panel:
    truth = sample.get('gt_label')
    if truth is None or len(truth) != 1:
        raise UsageError(f'an image must have one class, gt_label={truth}')
    true, found = int(truth), int(sample.pred_score.argmax())
    return Panel(
        image,
        f'true: {class_name(meta, true)}\n'
        f'found: {class_name(meta, found)} {sample.pred_score[found]:.0%}',
        colour='black' if true == found else 'red',
    )


def _segmentation(
    image: np.ndarray,
    sample: BaseDataElement,
    meta: dict,
    ignored: int,
    counts: np.ndarray,
) -> list[Panel]:
    """Panels of an image; adds to the pixels of classes and none, (C + 1,)."""
    if 'gt_sem_seg' not in sample:
        raise UsageError(
            f'{sample.img_path} has no ground truth: test_dataloader has no '
            'LoadAnnotations in its pipeline'
        )
    panels = [Panel(image, Path(sample.img_path).stem)]
    none = len(meta['classes'])
    for title, pixels in (
        ('ground truth', sample.gt_sem_seg),
        ('prediction', sample.pred_sem_seg),
    ):
        labels = pixels.data[0].numpy().astype(np.int64)
        # Whatever stands for ignored pixels, it is no class.
        labels[(labels == ignored) | (labels > none)] = none
        counts += np.bincount(labels.ravel(), minlength=none + 1)
        palette = palette_of(meta, meta['classes'])
        picture = colour_labels(labels, palette, max(image.shape))
        panels.append(Panel(picture, title))
    return panels


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
        boxes, masks = found.bboxes, [None] * len(found)
        if 'masks' in found:
            # Models of masks alone have empty boxes.
            boxes = boxes if boxes.any() else masks
            masks = found.masks.astype(bool)
        rows = zip(found.labels, found.scores, boxes, masks, strict=True)
        return [Part(int(label), float(v), b, m) for label, v, b, m in rows]
    if 'pred_sem_seg' in sample:
        labels = sample.pred_sem_seg.data.squeeze(0).numpy()
        parts = [
            Part(label, float((labels == label).mean()), mask=labels == label)
            for label in np.unique(labels).tolist()
        ]
        return sorted(parts, key=lambda part: part.value, reverse=True)
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
    numbers = [part.label + 1 for part in parts]
    count = max(len(meta.get('classes') or ()), *numbers, 0)
    colours = [*map(tuple, palette_of(meta, range(count)).tolist())]
    canvas = Visualizer()
    canvas.set_image(image)
    masked = [part for part in parts if part.mask is not None]
    if masked:
        canvas.draw_binary_masks(
            np.stack([part.mask for part in masked]),
            colors=[colours[part.label] for part in masked],
            alphas=0.5,
        )
    boxed = [part for part in parts if part.box is not None]
    if boxed:
        corners = np.stack([part.box for part in boxed]).reshape(-1, 2, 2)
        corners = np.sort(corners.clip(0, (w - 1, h - 1)), axis=1)
        canvas.draw_bboxes(
            corners.reshape(-1, 4),
            edge_colors=[colours[part.label] for part in boxed],
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
    for name in names:
        width = 2 if name == 'loss' else 1
        losses.plot(*run.curve(name), lw=width, label=name)
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
