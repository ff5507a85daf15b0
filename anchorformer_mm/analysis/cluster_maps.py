"""Which tokens are clustered together, as superpixels.

Attention to clusters (ClusTR, arXiv 2208.13138) merges the tokens of a map
into a few, by content and at several scales. Laid out over the image, the
clusters show what is told apart and what is not.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor, nn

from anchorformer_mm.analysis.panels import Panel, draw_panels, fit
from anchorformer_mm.analysis.token_maps import enlarge
from anchorformer_mm.analysis.watched_layers import (
    pick_layers,
    run_watched,
    shadow,
)
from anchorformer_mm.models.layers import ClusterAttention
from anchorformer_mm.utils.errors import UsageError

# Grey in place of a picture.
_NOTHING = 235


@dataclass(frozen=True)
class TokenClusters:
    """Clusters of one layer, for one batch.

    Attributes:
        name: Of the attention in the model.
        scales: For each scale, the coarsest first, the cluster of each token,
            int64, shape (B, H W), row by row, and the number of clusters,
            some of which may be empty; or None where each token is a cluster
            of its own.
        grid: Height and width (H, W) of the map of the tokens.
    """

    name: str
    scales: dict[int, tuple[Tensor, int] | None]
    grid: tuple[int, int]

    def at(self, scale: int | None = None) -> tuple[Tensor, int] | None:
        """Clusters at a scale; None is the coarsest.

        Raises:
            UsageError: There is no such scale.
        """
        scale = self.coarsest if scale is None else scale
        if scale not in self.scales:
            known = ', '.join(map(str, self.scales))
            raise UsageError(f'scales of {self.name} are {known}; got {scale}')
        return self.scales[scale]

    @property
    def coarsest(self) -> int:
        """The scale with fewest clusters."""
        return min(self.scales)

    @property
    def stage(self) -> str:
        """Name of the list whose blocks have the layer, or of the layer."""
        parts = self.name.split('.')
        numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
        return '.'.join(parts[: numbers[-1]] if numbers else parts)


def collect_clusters(model: nn.Module, *args, **kwargs) -> list[TokenClusters]:
    """Run a model once and keep the clusters of every layer that makes some.

    What is kept is what the layer went on with. The model is left as it was,
    whatever happens.

    Args:
        model: Any model with :class:`ClusterAttention`.
        *args: Passed to the model.
        **kwargs: Passed to the model.

    Returns:
        list[TokenClusters]: In the order in which the layers ran.

    Raises:
        UsageError: The model has no such layer, none of them ran, or one was
            not told the shape of its map.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, ClusterAttention)
    }
    if not layers:
        raise UsageError(
            'no layer of the model makes clusters to draw (none is a '
            'ClusterAttention)'
        )
    return run_watched(model, layers, _watch, 'clusters', *args, **kwargs)


def _watch(
    layer: ClusterAttention,
    name: str,
    found: dict[str, TokenClusters],
    stack: ExitStack,
) -> None:
    """Put what ``layer`` makes in ``found[name]`` until the stack is left."""

    def kept(original, x, hw_shape=None):
        if hw_shape is None:
            raise UsageError(
                f'{name} was run without hw_shape: its tokens cannot be '
                'laid out as a map'
            )
        clusters = original(x, hw_shape)
        scales = {
            scale: (made[0].cpu(), made[1]) if made else None
            for scale, made in zip(layer.scales, clusters, strict=True)
        }
        found[name] = TokenClusters(name, scales, tuple(map(int, hw_shape)))
        return clusters

    shadow(layer, 'cluster', kept, stack)


def choose_cluster_layers(
    layers: Sequence[TokenClusters], indices: Sequence[int] | None
) -> dict[int, TokenClusters]:
    """Layers by their number; the last of each stage for None.

    Raises:
        UsageError: There is no such layer.
    """
    if indices is None:
        indices = {layer.stage: i for i, layer in enumerate(layers)}.values()
    return pick_layers(layers, indices, 'clusters')


def draw_clusters(
    image: np.ndarray,
    layers: dict[int, TokenClusters],
    path: str | Path,
    *,
    scales: Sequence[int] | None = None,
    input_size: tuple[int, int] | None = None,
    columns: int = 4,
    cell: int = 336,
) -> None:
    """Draw every cluster in the mean colour of its pixels.

    A row begins with the image and has a picture of each layer. The caption
    tells how many clusters have pixels, and how many there are; where each
    token is a cluster, it says so and nothing is drawn.

    Args:
        image: What the model saw, RGB, uint8, shape (h, w, 3).
        layers: By their number, from :func:`choose_cluster_layers`.
        path: PNG to write.
        scales: A row for each; None draws the coarsest of each layer.
        input_size: Height and width of the network's input, px, if it was
            padded.
        columns: Pictures beside each other, at most; longer rows are broken.
        cell: Longer side of a picture, px.

    Raises:
        UsageError: A layer has no such scale.
    """
    sheet = []
    for scale in (None,) if scales is None else scales:
        row = [Panel(fit(image, cell), 'input')]
        for i, layer in layers.items():
            made = layer.at(scale)
            h, w = layer.grid
            if made is None:
                picture = np.full_like(row[0].image, _NOTHING)
                what = f'each of {h} x {w} tokens is a cluster'
            else:
                ids = made[0][0].view(h, w).numpy().astype(np.int32)
                size = image.shape[:2]
                ids = enlarge(ids, input_size or size, size, smooth=False)
                picture = superpixels(image, ids, cell)
                shown = len(np.unique(ids))
                what = f'{shown} of {made[1]} clusters, {h} x {w} tokens'
            which = layer.coarsest if scale is None else scale
            name = layer.name.removesuffix('.attn')
            title = f'layer {i}, scale {which}\n{name}\n{what}'
            row.append(Panel(picture, title))
        sheet += [row[j : j + columns] for j in range(0, len(row), columns)]
    draw_panels(sheet, path)


def superpixels(image: np.ndarray, ids: np.ndarray, cell: int) -> np.ndarray:
    """Fill each region of an image with its mean colour, and line it.

    Args:
        image: RGB, uint8, shape (h, w, 3).
        ids: Region of each pixel, int32, from 0, shape (h, w).
        cell: Longer side wanted, px.

    Returns:
        np.ndarray: RGB, uint8, shape (cell, w', 3) or (h', cell, 3). Lines
        are one pixel wide, darker than the colour, or lighter if it is dark.
    """
    flat = ids.ravel()
    sums = [np.bincount(flat, channel) for channel in image.reshape(-1, 3).T]
    counts = np.bincount(flat)
    means = np.round(np.stack(sums, 1) / np.maximum(counts, 1)[:, None])
    colours = means.astype(np.uint8)
    light = cv2.cvtColor(colours[None], cv2.COLOR_RGB2GRAY)[0] > 64
    lines = colours // 3 * 2 + np.where(light, 0, 85)[:, None].astype(np.uint8)
    big = fit(ids, cell, smooth=False)
    border = np.zeros(big.shape, bool)
    border[:, :-1] |= big[:, :-1] != big[:, 1:]
    border[:-1] |= big[:-1] != big[1:]
    return np.where(border[..., None], lines[big], colours[big])
