"""What speaks for a class, by Grad-CAM (arXiv 1610.02391), as a picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from anchorformer_mm.analysis.panels import Panel, draw_panels, fit
from anchorformer_mm.analysis.token_maps import covered_size, to_map
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


def class_index(
    target: str | int, classes: Sequence[str], num_classes: int
) -> int:
    """Find a class by its name, or else by its number.

    Args:
        target: Name or number.
        classes: Names, empty if they are not known.
        num_classes: Classes of the model.

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


def class_name(i: int, classes: Sequence[str]) -> str:
    """Name of a class, or else its number."""
    return classes[i] if i < len(classes) else f'class {i}'


def default_target_layer(model: nn.Module) -> str:
    """Name of the layer whose map Grad-CAM looks at.

    Of a plain transformer that is the last block, if the model is a
    segmentor. If it is a classifier, it is the first norm of that block: what
    follows the last attention reaches a class token from its own place only,
    so that the patches there have no gradient. Of a network with stages it
    is the last one, otherwise the last part of the backbone with weights.

    Args:
        model: With a ``backbone``; segmentors have a ``decode_head`` too.
    """
    backbone = model.backbone
    layers = getattr(backbone, 'layers', None)
    if isinstance(layers, nn.ModuleList) and hasattr(layers[-1], 'ln1'):
        last = f'backbone.layers.{len(layers) - 1}'
        return last if hasattr(model, 'decode_head') else f'{last}.ln1'
    stages = getattr(backbone, 'stages', None)
    if isinstance(stages, (nn.ModuleList, nn.Sequential)):
        return f'backbone.stages.{len(stages) - 1}'
    parts = [
        name
        for name, part in backbone.named_children()
        if next(part.parameters(), None) is not None
    ]
    return f'backbone.{parts[-1]}'


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Part of a model by its name, such as ``backbone.layers.5.ln1``.

    Raises:
        UsageError: There is none; the message names some that there are.
    """
    layers = dict(model.named_modules())
    if name and name in layers:
        return layers[name]
    shallow = [n for n in layers if 0 < n.count('.') < 3]
    names = dict.fromkeys([*get_close_matches(name, layers), *shallow])
    raise UsageError(
        f'the model has no layer {name!r}; it has {", ".join(names)} and '
        'their parts'
    )


def grad_cam(
    model: nn.Module,
    inputs: Tensor,
    *,
    target: str | int | None = None,
    classes: Sequence[str] = (),
    layer: str | None = None,
) -> ClassEvidence:
    """Find the places of an image that speak for a class.

    The model's weights and their gradients are left as they were.

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
    find_layer(model, name)
    with torch.no_grad():
        scores = model(inputs, mode='predict')[0].pred_score
    target = (
        int(scores.argmax())
        if target is None
        else class_index(target, classes, len(scores))
    )
    heat = heat_map(model, name, inputs, ClassifierOutputTarget(target))
    return ClassEvidence(heat, target, scores.cpu().numpy(), name)


def heat_map(
    model: nn.Module,
    layer: str,
    inputs: Tensor,
    target: Callable[[Tensor], Tensor],
    *,
    network: nn.Module | None = None,
) -> np.ndarray:
    """Grad-CAM at one layer.

    The model's weights and their gradients are left as they were.

    Args:
        model: With a ``backbone``, in evaluation mode.
        layer: Name of a part of it.
        inputs: One image as the network takes it, (1, 3, H, W).
        target: From what the network gives for this image to the number that
            is explained.
        network: What gives it for the inputs, if that is not the model.

    Returns:
        np.ndarray: From 0 to 1, shape (H, W); zero everywhere if nothing
        speaks for the target.

    Raises:
        UsageError: There is no such layer, it did not run or gives no map, or
            its map has no gradient.
    """
    size = tuple(inputs.shape[2:])
    backbone = model.backbone
    # As mmpretrain tells it, or mmseg.
    with_cls_token = getattr(backbone, 'with_cls_token', False)
    extra = getattr(backbone, 'num_extra_tokens', int(with_cls_token))

    def lay_out(x: Tensor) -> Tensor:
        try:
            # A copy: what follows the layer may work in place.
            return to_map(x, size, extra).clone()
        except (AttributeError, ValueError) as error:
            raise UsageError(f'layer {layer} gives no map: {error}') from None

    # Parameters may be frozen; the way from the image to the score is not.
    inputs = inputs.detach().clone().requires_grad_()
    gradients = {p: p.grad for p in model.parameters()}
    cam = _CoveringGradCAM(
        network or model,
        [find_layer(model, layer)],
        reshape_transform=lay_out,
    )
    try:
        heat = cam(inputs, [target])[0]
        reached = any(g.any() for g in cam.activations_and_grads.gradients)
    except _DidNotRun:
        raise UsageError(
            f'layer {layer} did not run as a whole; take one of its parts'
        ) from None
    finally:
        cam.activations_and_grads.release()
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
    if not reached:
        raise UsageError(
            f'no gradient of the score reaches the map of layer {layer}; '
            'take an earlier one'
        )
    return heat[: size[0], : size[1]]


class _DidNotRun(Exception):
    """The layer that was looked at took no part."""


class _CoveringGradCAM(GradCAM):
    """Grad-CAM whose map keeps its place where cells exceed the image."""

    def get_cam_weights(
        self, input_tensor, target_layer, targets, activations, grads
    ) -> np.ndarray:
        if grads is None:
            return np.zeros(activations.shape[:2], np.float32)
        return super().get_cam_weights(
            input_tensor, target_layer, targets, activations, grads
        )

    def get_target_width_height(self, input_tensor: Tensor):
        maps = self.activations_and_grads.activations
        if not maps:
            raise _DidNotRun
        return covered_size(input_tensor.shape[2:], maps[0].shape[2:])[::-1]


def draw_grad_cam(
    image: np.ndarray,
    evidence: ClassEvidence,
    path: str | Path,
    *,
    classes: Sequence[str] = (),
    cell: int = 336,
) -> None:
    """Draw an image, and beside it what speaks for the class.

    Args:
        image: What the model saw, RGB, uint8, shape (h, w, 3).
        evidence: From :func:`grad_cam`.
        path: PNG to write.
        classes: Names of the classes.
        cell: Longer side of a picture, px.
    """

    def score(i: int) -> str:
        return f'{class_name(i, classes)}, {evidence.scores[i]:.1%}'

    heat = evidence.heat[: image.shape[0], : image.shape[1]]
    overlay = show_cam_on_image(
        image.astype(np.float32) / 255, heat, use_rgb=True
    )
    title = f'Grad-CAM of {score(evidence.target)}'
    if not heat.any():
        title += '\nnothing speaks for it'
    draw_panels(
        [
            [
                Panel(
                    fit(image, cell),
                    f'predicted: {score(int(evidence.scores.argmax()))}',
                ),
                Panel(fit(overlay, cell), title),
            ]
        ],
        path,
    )
