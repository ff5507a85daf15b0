"""Pictures of annotated images, for each of the tasks."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.structures import BaseDataElement

from anchorformer_mm.analysis.browse import Example
from anchorformer_mm.analysis.class_colours import (
    class_legend,
    colour_labels,
    hatching,
)
from anchorformer_mm.analysis.panels import (
    SWATCH,
    LegendEntry,
    Panel,
    draw_panels,
    fit,
)

# px of the longer side of a picture, and pictures beside each other.
CELL, COLUMNS = 320, 4


@dataclass(frozen=True)
class Picture:
    """An example as it is drawn.

    Attributes:
        name: For a file.
        panels: Beside each other.
        labels: Pixels of each class for a legend; None if it needs none.
    """

    name: str
    panels: list[Panel]
    labels: Counter | None = None


def picture_examples(
    examples: Iterable[Example], meta: dict, scope: str
) -> list[Picture]:
    """Draw examples with their boxes and masks, label maps, or classes.

    Args:
        examples: Images, and data samples of one of the libraries.
        meta: Classes and palette of the data set.
        scope: ``'mmdet'``, ``'mmseg'`` or ``'mmpretrain'``.
    """
    draw = dict(mmdet=_boxes, mmseg=_label_map, mmpretrain=_classes)[scope]
    pictures = []
    for number, (image, sample) in enumerate(examples, 1):
        stem = Path(sample.get('img_path') or '').stem
        height, width = image.shape[:2]
        title = f'{number} {stem}\n{height} x {width} px'
        name = f'{number:03d}_{stem}' if stem else f'{number:03d}'
        pictures.append(Picture(name, *draw(title, image, sample, meta)))
    return pictures


def write_pictures(
    pictures: Sequence[Picture], meta: dict, out: Path, *, grid: bool
) -> list[Path]:
    """Write pictures, each for itself or all on one sheet.

    Args:
        pictures: At least one.
        meta: Classes and palette of the data set.
        out: Folder.
        grid: Whether all are on ``grid.png``.

    Returns:
        list[Path]: The files.
    """
    if not grid:
        for picture in pictures:
            path = out / f'{picture.name}.png'
            draw_panels(
                [picture.panels], path, legend=_legend([picture], meta)
            )
        return [out / f'{picture.name}.png' for picture in pictures]
    columns = max(COLUMNS // len(pictures[0].panels), 1)
    rows = [
        sum((picture.panels for picture in pictures[i : i + columns]), [])
        for i in range(0, len(pictures), columns)
    ]
    draw_panels(rows, out / 'grid.png', legend=_legend(pictures, meta))
    return [out / 'grid.png']


def _boxes(
    title: str, image: np.ndarray, sample: BaseDataElement, meta: dict
) -> tuple[list[Panel]]:
    """With boxes, and masks if there are."""
    # Takes seconds, and only detectors need it.
    from mmdet.visualization import DetLocalVisualizer

    picture = fit(image, CELL)
    (height, width), before = picture.shape[:2], image.shape[:2]
    instances = sample.gt_instances
    scale = instances.bboxes.new_tensor([width, height] * 2)
    scale /= scale.new_tensor([before[1], before[0]] * 2)
    instances.bboxes = instances.bboxes * scale
    if 'masks' in instances:
        instances.masks = instances.masks.resize((height, width))
    visualizer = DetLocalVisualizer(line_width=2, alpha=1.0)
    visualizer.dataset_meta = meta
    visualizer.add_datasample(title, picture, sample, draw_pred=False)
    # The canvas may be a pixel larger.
    drawn = visualizer.get_image()[:height, :width]
    return ([Panel(drawn, f'{title}, {len(instances)} objects')],)


def _label_map(
    title: str, image: np.ndarray, sample: BaseDataElement, meta: dict
) -> tuple[list[Panel], Counter]:
    """Beside its label map, where what is ignored is hatched."""
    labels = sample.gt_sem_seg.data[0].numpy()
    panels = [
        Panel(fit(image, CELL), title),
        Panel(colour_labels(labels, meta['palette'], CELL), 'label map'),
    ]
    return panels, Counter(labels.ravel().tolist())


def _classes(
    title: str, image: np.ndarray, sample: BaseDataElement, meta: dict
) -> tuple[list[Panel]]:
    """Named by its class, or by the classes that were mixed."""
    names = meta.get('classes') or ()

    def name(label: int) -> str:
        return names[label] if label < len(names) else str(label)

    if 'gt_score' in sample and (sample.gt_score > 0).sum() > 1:
        scores = sample.gt_score
        mixed = [int(i) for i in scores.argsort(descending=True)]
        caption = ', '.join(
            f'{name(i)} {scores[i]:.0%}' for i in mixed if scores[i] >= 0.01
        )
    else:
        caption = ', '.join(name(int(i)) for i in sample.gt_label)
    return ([Panel(fit(image, CELL // 2), f'{title}\n{caption}')],)


def _legend(pictures: Sequence[Picture], meta: dict) -> list[LegendEntry]:
    """The classes of label maps; boxes and captions name theirs."""
    if pictures[0].labels is None:
        return []
    total = sum((picture.labels for picture in pictures), Counter())
    names = meta['classes']
    counts = np.array([total[i] for i in range(len(names))])
    entries = class_legend(counts, names, meta['palette'])
    if total.keys() - set(range(len(names))):
        entries.append(('ignored', hatching(SWATCH, SWATCH)))
    return entries
