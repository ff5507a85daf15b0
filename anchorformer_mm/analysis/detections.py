"""Ground truth beside predictions on validation scenes, as a picture."""

from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmdet.apis import init_detector
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from anchorformer_mm.utils.files import replacing


def draw_detections(
    cfg: Config,
    checkpoint: str | Path,
    path: str | Path,
    *,
    num_images: int = 12,
    columns: int = 3,
    cell: int = 320,
    score_thr: float = 0.4,
    device: str = 'cpu',
) -> None:
    """Draw a grid of test images, ground truth left of the prediction.

    Args:
        cfg: Config of a detector with a ``test_dataloader``.
        checkpoint: Its weights.
        path: PNG to write.
        num_images: Images, evenly spread over the test set.
        columns: Pairs beside each other.
        cell: Longer side of one picture, in pixels.
        score_thr: Least score of a drawn prediction.
        device: Where the detector runs.
    """
    model = init_detector(cfg, str(checkpoint), device=device)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    visualizer = DetLocalVisualizer(line_width=2, alpha=1.0)
    visualizer.dataset_meta = dataset.metainfo
    count = min(num_images, len(dataset))
    pairs = []
    for i in np.linspace(0, len(dataset) - 1, count).round().astype(int):
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([dataset[int(i)]]))[0]
        pairs.append(_draw_pair(visualizer, sample, cell, score_thr))
    rows = [
        _row(pairs[i : i + columns], columns)
        for i in range(0, len(pairs), columns)
    ]
    with replacing(path) as temporary:
        mmcv.imwrite(np.vstack(rows)[..., ::-1], str(temporary))


def _row(pairs: list[np.ndarray], columns: int) -> np.ndarray:
    """Pairs (h_i, W, 3) beside each other, (max h_i, columns W, 3), white."""
    height, width = max(len(pair) for pair in pairs), pairs[0].shape[1]
    row = np.full((height, columns * width, 3), 255, np.uint8)
    for i, pair in enumerate(pairs):
        row[: len(pair), i * width : (i + 1) * width] = pair
    return row


def _draw_pair(
    visualizer: DetLocalVisualizer,
    sample: DetDataSample,
    cell: int,
    score_thr: float,
) -> np.ndarray:
    """One image twice, RGB, (height + caption, 2 cell + margins, 3)."""
    image = mmcv.imread(sample.img_path, channel_order='rgb')
    scale = cell / max(image.shape[:2])
    image = mmcv.imrescale(image, scale, interpolation='bicubic')
    sample = sample.cpu()
    # What is drawn last lies on top: the best of several boxes on one object.
    found = sample.pred_instances
    sample.pred_instances = found[found.scores.argsort()]
    sample.gt_instances.bboxes = sample.gt_instances.bboxes * scale
    sample.pred_instances.bboxes = sample.pred_instances.bboxes * scale
    cells = []
    for title, drawn in (
        ('ground truth', dict(draw_pred=False)),
        (f'prediction (score > {score_thr})', dict(draw_gt=False)),
    ):
        visualizer.add_datasample(
            title, image, sample, pred_score_thr=score_thr, **drawn
        )
        picture = visualizer.get_image()[:cell, :cell]
        canvas = np.full((len(picture) + 28, cell + 6, 3), 255, np.uint8)
        canvas[22 : 22 + picture.shape[0], : picture.shape[1]] = picture
        cv2.putText(
            canvas,
            title,
            (2, 16),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.5,
            (60, 60, 60),
            1,
            cv2.LINE_AA,
        )
        cells.append(canvas)
    return np.hstack(cells)
