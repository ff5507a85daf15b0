"""Which tokens each anchor collects, as pictures.

Anchor attention (arXiv 2505.16463, equation 4) shares every token among the
anchors: a row of A, which sums to 1. A column of A, laid out over the image,
shows what its anchor gathers.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from anchorformer_mm.analysis.panels import Panel, cell_size, draw_panels, fit
from anchorformer_mm.analysis.token_maps import enlarge, heat_overlay
from anchorformer_mm.analysis.watched_layers import (
    pick_layers,
    run_watched,
    shadow,
)
from anchorformer_mm.utils.errors import UsageError

ORDERS = ('contrast', 'mass')


@dataclass(frozen=True)
class AnchorWeights:
    """A of one layer, for one batch.

    Attributes:
        name: Of the attention in the model.
        weights: Share that an anchor has of a token, in [0, 1], shape
            (B, h, n, m); sums to 1 over the anchors.
        grid: Height and width (H, W) of the map whose tokens, row by row, are
            the last of the n.
    """

    name: str
    weights: Tensor
    grid: tuple[int, int]

    def maps(self, head: int | None = None, image: int = 0) -> np.ndarray:
        """What each anchor collects, shape (m, H, W).

        Args:
            head: A head, or None for the mean of all.
            image: Of the batch.

        Raises:
            UsageError: There is no such head.
        """
        num_heads = self.weights.shape[1]
        if head is not None and not 0 <= head < num_heads:
            raise UsageError(
                f'heads of {self.name} are 0 to {num_heads - 1}, got {head}'
            )
        weights = self.weights[image]
        weights = weights.mean(0) if head is None else weights[head]
        patches = weights[-self.grid[0] * self.grid[1] :]
        return patches.T.unflatten(1, self.grid).float().numpy()


def collect_anchor_weights(
    model: nn.Module, *args, **kwargs
) -> list[AnchorWeights]:
    """Run a model once and keep A of every anchor attention in it.

    A layer takes part if it has a method ``logits_of`` that gives the
    similarities of tokens and anchors, (B, h, n, m), and takes tokens and
    their ``hw_shape``, or a map (B, H, W, C). What is kept is what the method
    gave to the layer. The model is left as it was, whatever happens.

    Args:
        model: Any model with such layers.
        *args: Passed to the model.
        **kwargs: Passed to the model.

    Returns:
        list[AnchorWeights]: In the order in which the layers ran.

    Raises:
        UsageError: The model has no such layer, none of them ran, or one was
            not told the shape of its map.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if callable(getattr(layer, 'logits_of', None))
    }
    if not layers:
        raise UsageError(
            'no layer of the model tells what its anchors collect (none has '
            'a method logits_of): vanilla attention and convolutions have '
            'no anchors to draw'
        )
    return run_watched(model, layers, _watch, 'anchors', *args, **kwargs)


def _watch(
    layer: nn.Module,
    name: str,
    found: dict[str, AnchorWeights],
    stack: ExitStack,
) -> None:
    """Put A of ``layer`` in ``found[name]`` until ``stack`` is left."""
    logits = []

    def kept(original, *args, **kwargs):
        logits[:] = [original(*args, **kwargs)]
        return logits[0]

    def record(layer, args, kwargs, output):
        x = args[0]
        if x.ndim == 4:
            grid = x.shape[1:3]
        else:
            grid = args[1] if len(args) > 1 else kwargs.get('hw_shape')
        if grid is None:
            raise UsageError(
                f'{name} was run without hw_shape: its tokens cannot be '
                'laid out as a map'
            )
        dtype = torch.promote_types(logits[0].dtype, torch.float32)
        weights = logits[0].to(dtype).softmax(dim=-1).cpu()
        found[name] = AnchorWeights(name, weights, tuple(map(int, grid)))

    if getattr(layer, 'order', 'paper') != 'paper':
        # The folded order has no keys that could be told from the rest.
        stack.callback(setattr, layer, 'order', layer.order)
        layer.order = 'paper'
    shadow(layer, 'logits_of', kept, stack)
    stack.callback(
        layer.register_forward_hook(record, with_kwargs=True).remove
    )


def choose_layers(
    layers: Sequence[AnchorWeights], indices: Sequence[int] | None
) -> dict[int, AnchorWeights]:
    """Layers by their number; all for None.

    Raises:
        UsageError: There is no such layer.
    """
    if indices is None:
        indices = range(len(layers))
    return pick_layers(layers, indices, 'anchors')


def draw_anchor_maps(
    image: np.ndarray,
    layers: dict[int, AnchorWeights],
    path: str | Path,
    *,
    heads: Sequence[int] | None = None,
    num_anchors: int = 6,
    order: str = 'contrast',
    input_size: tuple[int, int] | None = None,
) -> None:
    """Draw the share of each token that an anchor collects, as heat maps.

    A row is a layer and a head, a column an anchor. Colours go from the least
    share on a map to its greatest; the caption tells both, and the anchor's
    share of the mass, that is, its mean share of a patch.

    Args:
        image: What the model saw, RGB, uint8, shape (h, w, 3).
        layers: By their number, from :func:`choose_layers`.
        path: PNG to write.
        heads: Rows of each layer; None draws the mean of all heads.
        num_anchors: Anchors drawn, at most.
        order: Which ones: those with the greatest difference between two
            patches (``'contrast'``), or with the greatest share of all
            (``'mass'``).
        input_size: Height and width of the network's input, px, if it was
            padded.

    Raises:
        UsageError: There is no such head or order, or ``num_anchors`` < 1.
    """
    if order not in ORDERS:
        raise UsageError(f'order must be one of {ORDERS}, got {order!r}')
    if num_anchors < 1:
        raise UsageError(f'num_anchors must be >= 1, got {num_anchors}')
    rows = list(_rows(layers, heads))
    cell = cell_size(len(rows), num_anchors + 1)
    size = image.shape[:2]
    sheet = []
    for title, maps in rows:
        shares = maps.mean(axis=(1, 2))
        low, high = maps.min(axis=(1, 2)), maps.max(axis=(1, 2))
        rank = high - low if order == 'contrast' else shares
        panels = [Panel(fit(image, cell), title)]
        for j in np.argsort(-rank, kind='stable')[:num_anchors]:
            heat = (maps[j] - low[j]) / max(high[j] - low[j], 1e-6)
            heat = enlarge(heat, input_size or size, size)
            caption = (
                f'anchor {j}: {shares[j]:.1%} of the mass\n'
                f'a patch gives {low[j]:.1%} to {high[j]:.1%}'
            )
            panels.append(Panel(fit(heat_overlay(image, heat), cell), caption))
        sheet.append(panels)
    draw_panels(sheet, path)


def draw_assignment(
    image: np.ndarray,
    layers: dict[int, AnchorWeights],
    path: str | Path,
    *,
    heads: Sequence[int] | None = None,
    columns: int = 4,
    input_size: tuple[int, int] | None = None,
) -> None:
    """Draw every patch in the colour of the anchor with its greatest share.

    An anchor has the same colour in every picture. Below stand the anchors
    that have most patches, and their part of them.

    Args:
        image: What the model saw, RGB, uint8, shape (h, w, 3).
        layers: By their number, from :func:`choose_layers`.
        path: PNG to write.
        heads: Pictures of each layer; None draws the mean of all heads.
        columns: Pictures beside each other, at most.
        input_size: As for :func:`draw_anchor_maps`.

    Raises:
        UsageError: There is no such head.
    """
    rows = list(_rows(layers, heads))
    columns = min(columns, len(rows) + 1)
    cell = cell_size(len(rows) // columns + 1, columns)
    size = image.shape[:2]
    panels = [Panel(fit(image, cell), 'input')]
    for title, maps in rows:
        colours = anchor_colours(len(maps))
        best = maps.argmax(axis=0)
        picture = enlarge(
            colours[best], input_size or size, size, smooth=False
        )
        count = np.bincount(best.ravel(), minlength=len(maps))
        used = np.argsort(-count, kind='stable')[: np.count_nonzero(count)]
        panels.append(
            Panel(
                fit(picture, cell, smooth=False),
                f'{title}\n{len(used)} of {len(maps)} anchors lead',
                legend=[
                    (f'{j}: {count[j] / best.size:.0%}', colours[j])
                    for j in used[:6]
                ],
            )
        )
    draw_panels(
        [panels[i : i + columns] for i in range(0, len(panels), columns)],
        path,
    )


def _rows(layers: dict[int, AnchorWeights], heads: Sequence[int] | None):
    """Title and maps (m, H, W) of each layer and head."""
    for i, layer in layers.items():
        for head in (None,) if heads is None else heads:
            of = 'mean of heads' if head is None else f'head {head}'
            name = layer.name.removesuffix('.attn')
            yield f'layer {i}, {of}\n{name}', layer.maps(head)


def anchor_colours(count: int) -> np.ndarray:
    """Each colour is as far from those before as can be, also to the eye.

    Args:
        count: Colours wanted; the first ones are always the same.

    Returns:
        np.ndarray: RGB, uint8, shape (count, 3).
    """
    levels = np.linspace(0, 255, 9, dtype=np.uint8)
    rgb = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 1, 3)
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[:, 0]
    # Nothing near black or white.
    distance = np.minimum(lab[:, 0], 100 - lab[:, 0])
    chosen = []
    for _ in range(count):
        chosen.append(int(distance.argmax()))
        new = np.linalg.norm(lab - lab[chosen[-1]], axis=1)
        distance = np.minimum(distance, new)
    return rgb[chosen, 0]
