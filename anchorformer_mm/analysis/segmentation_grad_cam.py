"""What speaks for the pixels of a class, by Grad-CAM, as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget
from torch import Tensor, nn

from anchorformer_mm.analysis.class_colours import class_legend, colour_labels
from anchorformer_mm.analysis.grad_cam import (
    class_index,
    class_name,
    default_target_layer,
    find_layer,
    heat_map,
)
from anchorformer_mm.analysis.panels import Panel, draw_panels, fit
from anchorformer_mm.utils.errors import UsageError


@dataclass(frozen=True)
class RegionEvidence:
    """Grad-CAM of the pixels that a segmentor gives to a class.

    Attributes:
        heat: From 0 to 1, shape (h, w) of the image; zero everywhere if
            nothing speaks for the class.
        target: The class.
        labels: Predicted class of each pixel, shape (h, w).
        layer: Name of the layer that was looked at.
    """

    heat: np.ndarray
    target: int
    labels: np.ndarray
    layer: str


def segmentation_grad_cam(
    model: nn.Module,
    inputs: Tensor,
    *,
    target: str | int | None = None,
    classes: Sequence[str] = (),
    layer: str | None = None,
    image_size: Sequence[int] | None = None,
) -> RegionEvidence:
    """Find the places of an image that speak for the pixels of a class.

    Explained is the sum of the logits of the class over the pixels at which
    it is predicted. The image goes through the network as a whole, also
    where ``test_cfg`` asks for windows. The model's weights and their
    gradients are left as they were.

    Args:
        model: Segmentor of mmseg with ``encode_decode``, in evaluation mode.
        inputs: One image as the network takes it, (1, 3, H, W).
        target: Name or number of the class; by default the one with most
            pixels.
        classes: Names of the classes.
        layer: Name of the layer whose map is weighted; by default that of
            :func:`~anchorformer_mm.analysis.grad_cam.default_target_layer`.
        image_size: Height and width (h, w) of the image in the inputs, px,
            if it was padded at the right or bottom.

    Raises:
        UsageError: There is no such class or layer, the class is predicted
            nowhere, the model has one channel for two classes, the layer did
            not run or gives no map, or its map has no gradient.
    """
    name = layer or default_target_layer(model)
    find_layer(model, name)
    h, w = image_size or inputs.shape[2:]
    network = _PixelLogits(model)
    with torch.no_grad():
        logits = network(inputs)[0]
    if len(logits) == 1:
        raise UsageError(
            'Grad-CAM of a segmentor needs a channel for each class; the '
            'decode_head has out_channels=1'
        )
    labels = logits[:, :h, :w].argmax(dim=0).cpu().numpy()
    counts = np.bincount(labels.ravel(), minlength=len(logits))
    if target is None:
        chosen = int(counts.argmax())
    else:
        chosen = class_index(target, classes, len(logits))
    if not counts[chosen]:
        found = ', '.join(
            class_name(i, classes) for i in np.flatnonzero(counts)
        )
        raise UsageError(
            f'{class_name(chosen, classes)} is found nowhere in the image, '
            f'and Grad-CAM explains pixels of a class that is: {found}'
        )
    mask = np.zeros(inputs.shape[2:], np.float32)
    mask[:h, :w] = labels == chosen
    heat = heat_map(
        model,
        name,
        inputs,
        SemanticSegmentationTarget(chosen, mask),
        network=network,
    )
    return RegionEvidence(heat[:h, :w], chosen, labels, name)


class _PixelLogits(nn.Module):
    """Logits of a segmentor, at the size of its inputs: (B, C, H, W)."""

    def __init__(self, segmentor: nn.Module) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, inputs: Tensor) -> Tensor:
        size = tuple(inputs.shape[2:])
        meta = dict(
            ori_shape=size,
            img_shape=size,
            pad_shape=size,
            padding_size=[0] * 4,
        )
        return self.segmentor.encode_decode(inputs, [meta] * len(inputs))


def draw_segmentation_grad_cam(
    image: np.ndarray,
    evidence: RegionEvidence,
    path: str | Path,
    *,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    cell: int = 336,
) -> None:
    """Draw an image, its predicted classes, and what speaks for one of them.

    The pixels that are explained have a white outline.

    Args:
        image: What the model saw, RGB, uint8, shape (h, w, 3).
        evidence: From :func:`segmentation_grad_cam`.
        path: PNG to write.
        classes: Names of the classes.
        palette: RGB colour of each class, shape (C, 3).
        cell: Longer side of a picture, px.
    """
    counts = np.bincount(evidence.labels.ravel(), minlength=len(palette))
    shares = [
        f'{class_name(i, classes)} {share:.1%}'
        for i, share in enumerate(counts / evidence.labels.size)
    ]
    overlay = show_cam_on_image(
        image.astype(np.float32) / 255, evidence.heat, use_rgb=True
    )
    overlay = _outlined(fit(overlay, cell), evidence.labels == evidence.target)
    title = f'Grad-CAM of {class_name(evidence.target, classes)}'
    if not evidence.heat.any():
        title += '\nnothing speaks for it'
    draw_panels(
        [
            [
                Panel(fit(image, cell), 'image'),
                Panel(
                    colour_labels(evidence.labels, palette, cell),
                    'predicted',
                    legend=class_legend(counts, shares, palette),
                ),
                Panel(overlay, title),
            ]
        ],
        path,
    )


def _outlined(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture with a white line around the pixels that are explained."""
    mask = fit(mask.astype(np.uint8), max(picture.shape[:2]), smooth=False)
    outlines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(picture, outlines, -1, (255, 255, 255), 1)
