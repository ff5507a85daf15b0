"""Test images of a segmentor with their true and their predicted classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmseg.datasets import BaseSegDataset
from mmseg.evaluation import IoUMetric
from mmseg.registry import DATASETS
from mmseg.structures import SegDataSample
from torch import Tensor

from anchorformer_mm.analysis.class_colours import (
    class_legend,
    colour_labels,
    hatching,
)
from anchorformer_mm.analysis.inference import load_model, require_image
from anchorformer_mm.analysis.panels import (
    SWATCH,
    LegendEntry,
    Panel,
    draw_panels,
    fit,
)
from anchorformer_mm.utils.errors import UsageError


def draw_segmentations(
    cfg: Config,
    checkpoint: str | Path,
    path: str | Path,
    *,
    num_images: int = 12,
    columns: int = 2,
    cell: int = 192,
    device: str = 'cpu',
) -> None:
    """Draw a grid of test images: image, ground truth and prediction.

    Classes have the colours of the data set; pixels that are ignored are
    hatched in the ground truth. Every prediction tells its mean IoU: over the
    classes that are in the ground truth or the prediction of that image.

    Args:
        cfg: Config of a segmentor of mmseg with a ``test_dataloader``.
        checkpoint: Its weights.
        path: PNG to write.
        num_images: Images, evenly spread over the test set.
        columns: Images beside each other, each with its two maps.
        cell: Longer side of one picture, px.
        device: Where the segmentor runs.

    Raises:
        UsageError: The data set tells no classes, or an image has no ground
            truth, one of another size, or one of other classes.
    """
    model = load_model(cfg, checkpoint, device)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    classes = dataset.metainfo.get('classes')
    if not classes:
        raise UsageError(
            'the data set of test_dataloader has no classes: give them as '
            'metainfo=dict(classes=...)'
        )
    ignored = getattr(dataset, 'ignore_index', 255)
    count = min(num_images, len(dataset))
    scenes = []
    for i in np.linspace(0, len(dataset) - 1, count).round().astype(int):
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([dataset[int(i)]]))[0]
        scenes.append(_read(sample, len(classes), ignored))
    palette = dataset.metainfo['palette']
    groups = [_panels(scene, palette, cell) for scene in scenes]
    rows = [
        sum(groups[i : i + columns], [])
        for i in range(0, len(groups), columns)
    ]
    draw_panels(rows, path, legend=_legend(scenes, classes, palette))


def palette_of(meta: dict, classes: Sequence[str]) -> np.ndarray:
    """Colours of classes; where there are none, those that mmseg makes up.

    Args:
        meta: Of a data set, with a ``palette`` or without.
        classes: Names.

    Returns:
        np.ndarray: RGB, uint8, shape (C, 3).
    """
    palette = meta.get('palette') or ()
    if len(palette) != len(classes):
        made_up = BaseSegDataset(
            metainfo=dict(classes=list(classes)), lazy_init=True
        )
        palette = made_up.metainfo['palette']
    return np.array(palette, np.uint8)


@dataclass(frozen=True)
class _Scene:
    """Image, RGB, (h, w, 3), its classes, both (h, w), and the mean IoU."""

    name: str
    image: np.ndarray
    true: np.ndarray
    found: np.ndarray
    iou: str


def _read(sample: SegDataSample, num_classes: int, ignored: int) -> _Scene:
    """Check what the model gave for one image.

    Raises:
        UsageError: As for :func:`draw_segmentations`.
    """
    name = sample.img_path
    if 'gt_sem_seg' not in sample or 'pred_sem_seg' not in sample:
        raise UsageError(
            f'{name} has no ground truth or no prediction of classes: '
            'predictions are drawn beside the ground truth, which the '
            'pipeline of test_dataloader loads with LoadAnnotations'
        )
    true = sample.gt_sem_seg.data[0].cpu().long()
    found = sample.pred_sem_seg.data[0].cpu().long()
    if true.shape != found.shape:
        raise UsageError(
            f'the ground truth of {name} has {_size(true)} px, the image '
            f'{_size(found)}: LoadAnnotations comes after Resize in the '
            'pipeline of test_dataloader, so that only the image is resized'
        )
    for labels, of in ((true, 'ground truth'), (found, 'prediction')):
        wrong = labels[(labels != ignored) & (labels >= num_classes)]
        if len(wrong):
            raise UsageError(
                f'the {of} of {name} has the class {int(wrong[0])}; those of '
                f'the data set are 0 to {num_classes - 1}, and {ignored} '
                'where pixels are ignored'
            )
    require_image(name)
    return _Scene(
        name=Path(name).stem,
        image=mmcv.imread(name, channel_order='rgb'),
        # Whatever stands for ignored pixels, it is no class.
        true=true.where(true != ignored, -1).numpy(),
        found=found.numpy(),
        iou=_mean_iou(found, true, num_classes, ignored),
    )


def _size(labels: Tensor) -> str:
    return ' x '.join(map(str, labels.shape))


def _mean_iou(
    found: Tensor, true: Tensor, num_classes: int, ignored: int
) -> str:
    """Mean IoU of one image as mmseg computes it, in words."""
    if (true == ignored).all():
        return 'all is ignored'
    areas = IoUMetric.intersect_and_union(found, true, num_classes, ignored)
    # Classes that are nowhere have no IoU (NaN).
    iou = IoUMetric.total_area_to_metrics(*areas)['IoU']
    return f'mIoU {100 * np.nanmean(iou):.1f}%'


def _panels(scene: _Scene, palette: Sequence, cell: int) -> list[Panel]:
    return [
        Panel(fit(scene.image, cell), scene.name),
        Panel(colour_labels(scene.true, palette, cell), 'ground truth'),
        Panel(
            colour_labels(scene.found, palette, cell),
            f'prediction, {scene.iou}',
        ),
    ]


def _legend(
    scenes: Sequence[_Scene], classes: Sequence[str], palette: Sequence
) -> list[LegendEntry]:
    """Of the whole sheet."""
    labels = [m.ravel() for scene in scenes for m in (scene.true, scene.found)]
    ignored, *counts = np.bincount(
        np.concatenate(labels) + 1, minlength=len(classes) + 1
    )
    entries = class_legend(np.array(counts), classes, palette)
    if ignored:
        entries.append(('ignored', hatching(SWATCH, SWATCH)))
    return entries
