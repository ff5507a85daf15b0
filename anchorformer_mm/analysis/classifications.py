"""Validation images with their true and their predicted class."""

from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmpretrain.registry import DATASETS
from mmpretrain.structures import DataSample

from anchorformer_mm.analysis.inference import load_model, to_rgb
from anchorformer_mm.analysis.panels import Panel, draw_panels, fit
from anchorformer_mm.utils.errors import UsageError


def draw_classifications(
    cfg: Config,
    checkpoint: str | Path,
    path: str | Path,
    *,
    num_images: int = 32,
    columns: int = 8,
    cell: int = 128,
    device: str = 'cpu',
) -> None:
    """Draw a grid of test images as the model sees them, wrong ones in red.

    Args:
        cfg: Config of a classifier with a ``test_dataloader``.
        checkpoint: Its weights.
        path: PNG to write.
        num_images: Images, evenly spread over the test set.
        columns: Images beside each other.
        cell: Longer side of one picture, px.
        device: Where the classifier runs.

    Raises:
        UsageError: An image has no class, or several.
    """
    model = load_model(cfg, checkpoint, device)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    classes = dataset.metainfo.get('classes') or ()
    count = min(num_images, len(dataset))
    panels = []
    for i in np.linspace(0, len(dataset) - 1, count).round().astype(int):
        data = dataset[int(i)]
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([data]))[0]
        image = fit(to_rgb(data['inputs']), cell)
        panels.append(_panel(image, sample, classes))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    draw_panels(rows, path)


def _panel(image: np.ndarray, sample: DataSample, classes: list[str]) -> Panel:
    """One image with its classes; red and framed if they differ."""

    def name(label: int) -> str:
        return classes[label] if label < len(classes) else str(label)

    truth = sample.get('gt_label')
    if truth is None or len(truth) != 1:
        raise UsageError(
            'predictions are drawn of images with one class each, got '
            f'gt_label={truth}'
        )
    true, found = int(truth), int(sample.pred_score.argmax())
    score = float(sample.pred_score.max())
    return Panel(
        image,
        f'true: {name(true)}\nfound: {name(found)} {score:.0%}',
        colour='black' if true == found else 'red',
        framed=true != found,
    )
