"""Random images with boxes as COCO has them, to measure a training with."""

import colorsys
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

ANNOTATIONS = 'annotations.json'
IMAGES = 'images'

# Boxes of an image: on average as many as in COCO, never none.
_MEAN_BOXES, _MOST_BOXES = 7.3, 63
# Root of a box's area at 640 x 480 px: the log-normal law of which 41 % are
# below 32 px and 24 % above 96 px, COCO's small and large objects.
_LOG_SIDE, _LOG_SIDE_DEVIATION = 3.73, 1.2
_LOG_ASPECT_DEVIATION = 0.5
_LEAST_SIDE = 4
# Makes a file of about 150 kB, as COCO's are.
_NOISE = 12


def random_boxes(
    rng: np.random.Generator, count: int, shape: tuple[int, int]
) -> np.ndarray:
    """Draw boxes of COCO's sizes, anywhere in an image.

    Args:
        rng: Source of randomness.
        count: Number of boxes.
        shape: Height and width of the image, px.

    Returns:
        np.ndarray: ``(count, 4)``, ``xyxy`` in px.
    """
    height, width = shape
    side = rng.lognormal(_LOG_SIDE, _LOG_SIDE_DEVIATION, count)
    side *= np.sqrt(height * width / (480 * 640))
    stretch = np.exp(rng.normal(0, _LOG_ASPECT_DEVIATION / 2, count))
    sizes = np.stack([side * stretch, side / stretch], axis=1)
    sizes = sizes.clip(_LEAST_SIDE, (width, height))
    corners = rng.uniform(0, 1, (count, 2)) * ((width, height) - sizes)
    return np.concatenate([corners, corners + sizes], axis=1)


def write_synthetic_coco(
    folder: Path,
    classes: Sequence[str],
    num_images: int = 64,
    shape: tuple[int, int] = (480, 640),
    seed: int = 0,
) -> None:
    """Write images and their annotations in COCO's format.

    A box is a patch in the colour of its class, so that a detector can learn
    it.

    Args:
        folder: Gets ``annotations.json`` and the folder ``images``.
        classes: Names of the classes.
        num_images: Number of images, each with at least one box.
        shape: Height and width of the images, px.
        seed: Of the random numbers.
    """
    rng = np.random.default_rng(seed)
    (folder / IMAGES).mkdir(parents=True)
    height, width = shape
    images, annotations = [], []
    for image_id in range(num_images):
        count = min(rng.geometric(1 / _MEAN_BOXES), _MOST_BOXES)
        boxes = random_boxes(rng, count, shape)
        labels = rng.integers(len(classes), size=count)
        name = f'{image_id:06d}.jpg'
        pixels = _draw(rng, boxes, labels, len(classes), shape)
        cv2.imwrite(str(folder / IMAGES / name), pixels)
        images.append(
            dict(id=image_id, file_name=name, height=height, width=width)
        )
        for label, (x1, y1, x2, y2) in zip(
            labels.tolist(), boxes.tolist(), strict=True
        ):
            annotations.append(
                dict(
                    id=len(annotations),
                    image_id=image_id,
                    category_id=label,
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=(x2 - x1) * (y2 - y1),
                    iscrowd=0,
                )
            )
    categories = [dict(id=i, name=name) for i, name in enumerate(classes)]
    text = json.dumps(
        dict(images=images, annotations=annotations, categories=categories)
    )
    (folder / ANNOTATIONS).write_text(text)


def _draw(
    rng: np.random.Generator,
    boxes: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    shape: tuple[int, int],
) -> np.ndarray:
    """An image, ``(H, W, 3)`` uint8."""
    height, width = shape
    coarse = rng.uniform(40, 200, (6, 8, 3)).astype(np.float32)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for (x1, y1, x2, y2), label in zip(
        boxes.round().astype(int), labels.tolist(), strict=True
    ):
        colour = colorsys.hsv_to_rgb(label / num_classes, 0.8, 1)
        image[y1:y2, x1:x2] = 255 * np.array(colour)
    noise = rng.normal(0, _NOISE, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)
