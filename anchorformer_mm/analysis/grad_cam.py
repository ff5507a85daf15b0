"""Places that speak for a class, by Grad-CAM (arXiv 1610.02391), as pictures.

Explained is a class of a classifier, or the pixels of a class that a
segmentor finds. Needs the library grad-cam.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import cv2
import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import (
    ClassifierOutputTarget,
    SemanticSegmentationTarget,
)
from torch import Tensor, nn

from anchorformer_mm.analysis.layer_maps import covered_size, is_map
from anchorformer_mm.analysis.pictures import (
    Panel,
    class_legend,
    class_name,
    colour_labels,
    draw_panels,
    fit,
)
from anchorformer_mm.utils.errors import UsageError


@dataclass(frozen=True)
class ClassEvidence:
    """Grad-CAM of one image.

    Attributes:
        heat: From 0 to 1, shape (H, W) of the network's input; zero
            everywhere if nothing speaks for the class.
        target: The class.
        scores: Of all classes, as the model predicts them, shape (C,).
        layer: Name of the layer that was looked at.
    """

    heat: np.ndarray
    target: int
    scores: np.ndarray
    layer: str


@dataclass(frozen=True)
class RegionEvidence:
    """Grad-CAM of the pixels that a segmentor gives to a class.

    Attributes:
        heat: As of :class:`ClassEvidence`, shape (h, w) of the image.
        target: The class.
        labels: Predicted class of each pixel, shape (h, w).
        layer: Name of the layer that was looked at.
    """

    heat: np.ndarray
    target: int
    labels: np.ndarray
    layer: str


def class_index(
    target: str | int, classes: Sequence[str], num_classes: int
) -> int:
    """Find a class by its name, or else by its number.

    Raises:
        UsageError: There is no such class.
    """
    classes = list(classes)[:num_classes]
    if target in classes:
        return classes.index(target)
    if str(target).isdecimal() and int(target) < num_classes:
        return int(target)
    close = get_close_matches(str(target), classes) or classes[:10]
    names = f', or a name such as {", ".join(close)}' if classes else ''
    raise UsageError(
        f'target must be a class from 0 to {num_classes - 1}{names}; got '
        f'{target!r}'
    )


def default_target_layer(model: nn.Module) -> str:
    """Name of the layer whose map Grad-CAM looks at.

    The last block of a plain transformer in a segmentor; in a classifier the
    first norm of that block, as what follows the last attention reaches a
    class token from its own place only. The last stage of a network with
    stages, otherwise the last part of the backbone with weights.
    """
    backbone = model.backbone
    layers = getattr(backbone, 'layers', None)
    if isinstance(layers, nn.ModuleList) and hasattr(layers[-1], 'ln1'):
        last = f'backbone.layers.{len(layers) - 1}'
        return last if hasattr(model, 'decode_head') else f'{last}.ln1'
    stages = getattr(backbone, 'stages', None)
    if isinstance(stages, (nn.ModuleList, nn.Sequential)):
        return f'backbone.stages.{len(stages) - 1}'
    parts = [n for n, p in backbone.named_children() if [*p.parameters()]]
    return f'backbone.{parts[-1]}'


def _find_layer(model: nn.Module, name: str) -> nn.Module:
    """Part of a model by its name, such as ``backbone.layers.5.ln1``."""
    layers = dict(model.named_modules())
    if name in layers:
        return layers[name]
    shallow = [n for n in layers if 0 < n.count('.') < 3]
    names = ', '.join(dict.fromkeys(get_close_matches(name, layers) + shallow))
    raise UsageError(
        f'the model has no layer {name!r}; it has {names} and their parts'
    )


def grad_cam(
    model: nn.Module,
    inputs: Tensor,
    *,
    target: str | int | None = None,
    classes: Sequence[str] = (),
    layer: str | None = None,
) -> ClassEvidence:
    """Find what speaks for a class in an image; the model stays as it was.

    Args:
        model: Classifier of mmpretrain, in evaluation mode.
        inputs: One image as the network takes it, (1, 3, H, W).
        target: Name or number of the class; by default the predicted one.
        classes: Names of the classes.
        layer: Name of the layer whose map is weighted; by default that of
            :func:`default_target_layer`.

    Raises:
        UsageError: There is no such class or layer, the layer did not run or
            gives no map, or its map has no gradient.
    """
    name = layer or default_target_layer(model)
    with torch.no_grad():
        scores = model(inputs, mode='predict')[0].pred_score
    chosen = int(scores.argmax())
    if target is not None:
        chosen = class_index(target, classes, len(scores))
    score = ClassifierOutputTarget(chosen)
    heat = _heat_map(model, model, name, inputs, score)
    return ClassEvidence(heat, chosen, scores.cpu().numpy(), name)


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
    where ``test_cfg`` asks for windows. Arguments and errors are those of
    :func:`grad_cam`, but for the following.

    Args:
        model: Segmentor of mmseg with ``encode_decode``, in evaluation mode.
        target: By default the class with most pixels.
        image_size: Height and width of the image, px, if it was padded.

    Raises:
        UsageError: The class is nowhere, or has no channel of its own.
    """
    name = layer or default_target_layer(model)
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
    chosen = int(counts.argmax())
    if target is not None:
        chosen = class_index(target, classes, len(logits))
    if not counts[chosen]:
        meta = dict(classes=classes)
        there = [class_name(meta, i) for i in np.flatnonzero(counts)]
        raise UsageError(
            f'{class_name(meta, chosen)} is found nowhere in the image, '
            f'take a class that is: {", ".join(there)}'
        )
    mask = np.zeros(inputs.shape[2:], np.float32)
    mask[:h, :w] = labels == chosen
    score = SemanticSegmentationTarget(chosen, mask)
    heat = _heat_map(model, network, name, inputs, score)
    return RegionEvidence(heat[:h, :w], chosen, labels, name)


class _PixelLogits(nn.Module):
    """Logits (B, C, H, W) of a segmentor, at the size of its inputs."""

    def __init__(self, segmentor: nn.Module) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, inputs: Tensor) -> Tensor:
        size = tuple(inputs.shape[2:])
        meta = dict.fromkeys(('ori_shape', 'img_shape', 'pad_shape'), size)
        meta['padding_size'] = [0] * 4
        return self.segmentor.encode_decode(inputs, [meta] * len(inputs))


def _heat_map(
    model: nn.Module,
    network: nn.Module,
    layer: str,
    inputs: Tensor,
    target: Callable[[Tensor], Tensor],
) -> np.ndarray:
    """Grad-CAM of what ``network`` makes of the inputs, at one layer."""
    size = tuple(inputs.shape[2:])
    # mmpretrain's backbones have the number, mmseg's the flag.
    extra = int(getattr(model.backbone, 'with_cls_token', False))
    extra = getattr(model.backbone, 'num_extra_tokens', extra)

    def lay_out(x: Tensor) -> Tensor:
        found = _to_map(x, size, extra) if isinstance(x, Tensor) else None
        if found is None:
            what = getattr(x, 'shape', type(x))
            raise UsageError(f'layer {layer} gives no map: {what}')
        # A copy: what follows the layer may work in place.
        return found.clone()

    # Parameters may be frozen; the way from the image to the score is not.
    inputs = inputs.detach().clone().requires_grad_()
    # Copies get the hooks and the gradients.
    model, network = deepcopy((model, network))
    cam = _CoveringGradCAM(network, [_find_layer(model, layer)], lay_out)
    cam.layer = layer
    return cam(inputs, [target])[0, : size[0], : size[1]]


class _CoveringGradCAM(GradCAM):
    """Grad-CAM whose map keeps its place where cells exceed the image."""

    def get_target_width_height(self, input_tensor: Tensor) -> Sequence[int]:
        """Width and height in px of what the map covers, once it is there."""
        kept = self.activations_and_grads
        if not kept.activations:
            raise UsageError(
                f'layer {self.layer} did not run as a whole; take a part of it'
            )
        if not any(gradient.any() for gradient in kept.gradients):
            raise UsageError(
                'no gradient of the score reaches the map of layer '
                f'{self.layer}; take an earlier one'
            )
        grid = kept.activations[0].shape[2:]
        return covered_size(input_tensor.shape[2:], grid)[::-1]


def _to_map(x: Tensor, size: Sequence[int], extra: int) -> Tensor | None:
    """Map (B, C, H, W) of a map, or of tokens after ``extra`` others."""
    if x.ndim == 4:
        last = is_map(size, x.shape[1:3]) and not is_map(size, x.shape[2:])
        return x.permute(0, 3, 1, 2) if last else x
    if x.ndim == 3:
        n = x.shape[1] - extra
        # At most one: more rows want a lesser stride, fewer columns a greater.
        for h in range(1, n + 1):
            if n % h == 0 and is_map(size, (h, n // h)):
                patches = x[:, extra:].transpose(1, 2)
                return patches.unflatten(2, (h, n // h))
    return None


def draw_grad_cam(
    image: np.ndarray,
    evidence: ClassEvidence | RegionEvidence,
    path: str | Path,
    *,
    classes: Sequence[str] = (),
    palette: Sequence[Sequence[int]] = (),
) -> None:
    """Draw an image, and beside it what speaks for the class.

    Of a segmentor, the predicted classes stand between them, and the pixels
    that are explained have a white outline.

    Args:
        image: As the model sees it, RGB, uint8, shape (h, w, 3).
        evidence: From :func:`grad_cam` or :func:`segmentation_grad_cam`.
        path: PNG to write.
        classes: Names of the classes.
        palette: RGB colour of each class, for a segmentor.
    """
    meta, cell = dict(classes=classes), 336

    def name(i: int, share: float) -> str:
        return f'{class_name(meta, i)}, {share:.1%}'

    heat = evidence.heat[: image.shape[0], : image.shape[1]]
    overlay = fit(show_cam_on_image(image / np.float32(255), heat, True), cell)
    if isinstance(evidence, ClassEvidence):
        best = int(evidence.scores.argmax())
        predicted = f'predicted: {name(best, evidence.scores[best])}'
        panels = [Panel(fit(image, cell), predicted)]
        title = name(evidence.target, evidence.scores[evidence.target])
    else:
        counts = np.bincount(evidence.labels.ravel(), minlength=len(palette))
        size = evidence.labels.size
        names = [name(i, count / size) for i, count in enumerate(counts)]
        labels = colour_labels(evidence.labels, palette, cell)
        legend = class_legend(counts, names, palette)
        panels = [Panel(fit(image, cell), 'image')]
        panels += [Panel(labels, 'predicted', legend=legend)]
        title = class_name(meta, evidence.target)
        mask = np.uint8(evidence.labels == evidence.target)
        mask = fit(mask, cell, smooth=False)
        how = cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
        lines, _ = cv2.findContours(mask, *how)
        cv2.drawContours(overlay, lines, -1, (255, 255, 255), 1)
    nothing = '' if heat.any() else '\nnothing speaks for it'
    panels.append(Panel(overlay, f'Grad-CAM of {title}{nothing}'))
    draw_panels([panels], path)
