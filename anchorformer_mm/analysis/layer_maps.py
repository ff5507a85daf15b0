"""What the attention layers of a model make of an image, as pictures.

Anchor attention (arXiv 2505.16463, equation 4) shares every token among the
anchors: a row of A, which sums to 1. A column of A, laid out over the image,
shows what its anchor gathers. Attention to clusters (ClusTR, arXiv
2208.13138) merges the tokens of a map into a few, by content and at several
scales. Laid out over the image, the clusters show what is told apart.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from anchorformer_mm.analysis.anchor_state import (
    anchor_figures,
    anchor_layers,
    in_words,
    tell_tokens_apart,
    watch_weights,
)
from anchorformer_mm.analysis.pictures import (
    LegendEntry,
    Panel,
    cell_size,
    distinct_colours,
    draw_panels,
    fit,
)
from anchorformer_mm.apis import PreparedImage
from anchorformer_mm.models.layers import ClusterAttention
from anchorformer_mm.utils.errors import UsageError

ORDERS = ('contrast', 'mass')
# Weights are coloured from an even share, 1 / m, over 8 to 8 times that, in
# every picture: a scale of its own would make noise look like attention.
_OCTAVES = 3
# Grey in place of a picture; pictures beside each other; px of a cluster map.
_NOTHING, _COLUMNS, _CELL = 235, 4, 336


@dataclass(frozen=True)
class AnchorWeights:
    """A of one layer, for one batch.

    Attributes:
        name: Of the attention in the model.
        weights: Share that an anchor has of a token, in [0, 1], shape
            (B, h, n, m); sums to 1 over the anchors.
        grid: Height and width (H, W) of the map whose tokens, row by row, are
            the last of the n.
        figures: Of each head, from :func:`.anchor_figures`.
    """

    name: str
    weights: Tensor
    grid: tuple[int, int]
    figures: Mapping[str, Tensor]

    def state(self, head: int | None = None) -> dict[str, float]:
        """Figures of a head, or None for their means."""
        chosen = slice(None) if head is None else head
        return {k: float(v[chosen].mean()) for k, v in self.figures.items()}

    def maps(self, head: int | None = None, image: int = 0) -> np.ndarray:
        """Lay out what each anchor collects, shape (m, H, W).

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


@dataclass(frozen=True)
class TokenClusters:
    """Clusters of one layer, for one batch.

    Attributes:
        name: Of the attention in the model.
        scales: For each scale, the coarsest first, the cluster of each token,
            int64, shape (B, H W), and the number of clusters, some of which
            may be empty; None where each token is a cluster of its own.
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
        scale = min(self.scales) if scale is None else scale
        if scale not in self.scales:
            known = ', '.join(map(str, self.scales))
            raise UsageError(f'scales of {self.name} are {known}; got {scale}')
        return self.scales[scale]

    @property
    def stage(self) -> str:
        """Name of the list whose blocks have the layer, or of the layer."""
        return re.sub(r'(^|\.)\d+(\.\D[^.]*)*$', '', self.name)


def maps_of(model: nn.Module) -> str:
    """Tell if layers of a model make 'anchors', or else 'clusters'.

    Raises:
        UsageError: They make neither.
    """
    for kind, (layers_of, _) in _KINDS.items():
        if layers_of(model):
            return kind
    raise UsageError(
        'the model has neither anchors nor clusters to draw: no layer has a '
        'method weights_of or is a ClusterAttention'
    )


def collect_anchor_weights(
    model: nn.Module, *args, **kwargs
) -> list[AnchorWeights]:
    """Run a model once and keep A of every anchor attention in it.

    A layer takes part if it has a method ``weights_of``, see
    :func:`.anchor_layers`, and takes tokens and their ``hw_shape``, or a map
    (B, H, W, C). The model is left as it was, whatever happens. The list is
    in the order in which the layers ran.

    Raises:
        UsageError: The model has no such layer, none of them ran, or one was
            not told the shape of its map.
    """
    return _collect('anchors', model, args, kwargs)


def collect_clusters(model: nn.Module, *args, **kwargs) -> list[TokenClusters]:
    """Run a model once and keep the clusters of every ClusterAttention.

    What is kept is what the layer went on with. For the rest see
    :func:`collect_anchor_weights`.
    """
    return _collect('clusters', model, args, kwargs)


def _collect(kind: str, model: nn.Module, args: tuple, kwargs: dict) -> list:
    """Run a model and keep what its layers of one kind make."""
    layers_of, watch = _KINDS[kind]
    layers = layers_of(model)
    if not layers:
        raise UsageError(f'no layer of the model has {kind} to draw')
    found = {}
    with ExitStack() as stack, torch.no_grad():
        for name, layer in layers.items():
            stack.enter_context(watch(layer, name, found))
        model(*args, **kwargs)
    if not found:
        raise UsageError(f'none of the {len(layers)} layers with {kind} ran')
    return list(found.values())


def _grid_of(name: str, shape: Sequence[int] | None) -> tuple[int, int]:
    if shape is None:
        raise UsageError(
            f'{name} was run without hw_shape: its tokens cannot be laid out '
            'as a map'
        )
    return tuple(map(int, shape))


def _watch_anchors(
    layer: nn.Module, name: str, found: dict
) -> AbstractContextManager:
    def keep(weights, x, hw_shape=None):
        grid = _grid_of(name, x.shape[1:3] if x.ndim == 4 else hw_shape)
        figures = {k: v.cpu() for k, v in anchor_figures(*weights).items()}
        found[name] = AnchorWeights(name, weights[1].cpu(), grid, figures)

    return watch_weights(layer, keep)


def _watch_clusters(
    layer: ClusterAttention, name: str, found: dict
) -> AbstractContextManager:
    cluster = layer.cluster

    def keep(x, hw_shape=None):
        grid = _grid_of(name, hw_shape)
        clusters = cluster(x, hw_shape)
        scales = {
            scale: (made[0].cpu(), made[1]) if made else None
            for scale, made in zip(layer.scales, clusters, strict=True)
        }
        found[name] = TokenClusters(name, scales, grid)
        return clusters

    return patch.object(layer, 'cluster', keep)


def _cluster_layers(model: nn.Module) -> dict[str, nn.Module]:
    layers = model.named_modules()
    return {n: m for n, m in layers if isinstance(m, ClusterAttention)}


# Functions that find the layers, and that store what one makes by its name.
_KINDS = dict(
    anchors=(anchor_layers, _watch_anchors),
    clusters=(_cluster_layers, _watch_clusters),
)


def choose_layers(
    made: Sequence[AnchorWeights] | Sequence[TokenClusters],
    indices: Sequence[int] | None = None,
) -> dict[int, AnchorWeights] | dict[int, TokenClusters]:
    """Layers by their number, from 0, in the order in which they ran.

    None chooses all with anchors, or the last of each stage with clusters.

    Raises:
        UsageError: There is no such layer.
    """
    if indices is None:
        stages = {getattr(x, 'stage', i): i for i, x in enumerate(made)}
        indices = stages.values()
    for i in indices:
        if not 0 <= i < len(made):
            raise UsageError(
                f'the layers are 0 to {len(made) - 1}, {made[0].name} to '
                f'{made[-1].name}; got {i}'
            )
    return {i: made[i] for i in indices}


def picture_layers(
    model: nn.Module,
    image: PreparedImage,
    prefix: str | Path,
    *,
    kind: str,
    layers: Sequence[int] | None = None,
    **options,
) -> list[Path]:
    """Draw anchors and the patches that they lead, or clusters, as files.

    Args:
        model: Detector, segmentor or classifier.
        image: From :func:`~anchorformer_mm.apis.prepare_image`.
        prefix: Folder, and beginning of the names of the pictures.
        kind: ``'anchors'`` or ``'clusters'``, as of :func:`maps_of`.
        layers: Of :func:`choose_layers`.
        **options: ``heads``, ``num_anchors`` and ``order`` of
            :func:`draw_anchor_maps`, or ``scales`` of :func:`draw_clusters`.
    """
    anchors = kind == 'anchors'
    collect = collect_anchor_weights if anchors else collect_clusters
    made = collect(model, image.inputs, image.data_samples, mode='tensor')
    chosen = choose_layers(made, layers)
    if not anchors:
        paths = [Path(f'{prefix}_clusters.png')]
        draw_clusters(image, chosen, *paths, **options)
        return paths
    paths = [Path(f'{prefix}_{x}.png') for x in ('anchors', 'assignment')]
    draw_anchor_maps(image, chosen, paths[0], **options)
    draw_assignment(image, chosen, paths[1], heads=options.get('heads'))
    return paths


def draw_anchor_maps(
    image: PreparedImage,
    layers: dict[int, AnchorWeights],
    path: str | Path,
    *,
    heads: Sequence[int] | None = None,
    num_anchors: int = 6,
    order: str = 'contrast',
) -> None:
    """Draw the share of each token that an anchor collects, as heat maps.

    A row is a layer and a head, a column an anchor. One scale of colours holds
    for all: from an eighth of an even share, 1 / m, to eight times that. The
    caption tells the least and the greatest share, and the anchor's share of
    the mass, that is, its mean share of a patch. A row begins with its figures
    (:func:`.anchor_figures`), in red if the anchors tell no tokens apart.

    Args:
        image: As the model sees it.
        layers: By their number, from :func:`choose_layers`.
        path: PNG to write.
        heads: Rows of each layer; None draws the mean of all heads.
        num_anchors: Anchors drawn, at most.
        order: Anchors with the greatest difference between two patches first
            (``'contrast'``), or with the greatest share of all (``'mass'``).

    Raises:
        UsageError: There is no such head or order, or ``num_anchors`` < 1.
    """
    if order not in ORDERS:
        raise UsageError(f'order must be one of {ORDERS}, got {order!r}')
    if num_anchors < 1:
        raise UsageError(f'num_anchors must be >= 1, got {num_anchors}')
    rows = list(_rows(layers, heads))
    cell = cell_size(len(rows), num_anchors + 1)
    sheet = []
    for title, colour, maps in rows:
        shares = maps.mean(axis=(1, 2))
        low, high = maps.min(axis=(1, 2)), maps.max(axis=(1, 2))
        rank = high - low if order == 'contrast' else shares
        panels = [Panel(fit(image.pixels, cell), title, colour)]
        for j in np.argsort(-rank, kind='stable')[:num_anchors]:
            heat = (_octaves(maps[j], len(maps)) + 1) / 2
            heat = enlarge(heat, image)
            overlay = fit(_heat_overlay(image.pixels, heat), cell)
            caption = f'anchor {j}: {shares[j]:.1%} of the mass\n'
            caption += f'a patch gives {low[j]:.1%} to {high[j]:.1%}'
            panels.append(Panel(overlay, caption))
        sheet.append(panels)
    draw_panels(sheet, path, legend=_scale_legend())


def draw_assignment(
    image: PreparedImage,
    layers: dict[int, AnchorWeights],
    path: str | Path,
    *,
    heads: Sequence[int] | None = None,
) -> None:
    """Draw every patch in the colour of the anchor with its greatest share.

    An anchor has the same colour in every picture, which fades to grey where
    its share is but an even one, 1 / m. Below stand the anchors that have most
    patches, and their part of them. The rest is as for
    :func:`draw_anchor_maps`.
    """
    rows = list(_rows(layers, heads))
    columns = min(_COLUMNS, len(rows) + 1)
    cell = cell_size(len(rows) // columns + 1, columns)
    panels = [Panel(fit(image.pixels, cell), 'input')]
    for title, colour, maps in rows:
        colours = distinct_colours(len(maps))
        best = maps.argmax(axis=0)
        strength = _octaves(maps.max(axis=0), len(maps))[..., None]
        picture = _NOTHING + strength * (colours[best] - float(_NOTHING))
        picture = enlarge(np.uint8(picture.round()), image, smooth=False)
        count = np.bincount(best.ravel(), minlength=len(maps))
        used = np.argsort(-count, kind='stable')[: np.count_nonzero(count)]
        title += f'\n{len(used)} of {len(maps)} anchors lead'
        shares = count / best.size
        legend = [(f'{j}: {shares[j]:.0%}', colours[j]) for j in used[:6]]
        picture = fit(picture, cell, smooth=False)
        panels.append(Panel(picture, title, colour, legend))
    starts = range(0, len(panels), columns)
    draw_panels([panels[i : i + columns] for i in starts], path)


def _rows(
    layers: dict[int, AnchorWeights], heads: Sequence[int] | None
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Title, its colour, and maps (m, H, W), by layer and head."""
    for i, layer in layers.items():
        for head in (None,) if heads is None else heads:
            of = 'mean of heads' if head is None else f'head {head}'
            name = layer.name.removesuffix('.attn')
            maps, state = layer.maps(head), layer.state(head)
            title = f'layer {i}, {of}\n{name}\n{in_words(state)}\n'
            title += f'dead {state["dead"]:.0%}, '
            title += f"logits' deviation {state['deviation']:.2f}"
            colour = 'black'
            if not tell_tokens_apart(state):
                title += '\nthese anchors do not tell tokens apart'
                colour = 'red'
            yield title, colour, maps


def _octaves(shares: np.ndarray, count: int) -> np.ndarray:
    """Shares over an even one, 1 / count, on the scale of all pictures.

    From -1, an eighth or less, over 0, even, to 1, eight times or more.
    """
    octaves = np.log2(np.maximum(shares * count, 1e-6)) / _OCTAVES
    return np.clip(octaves, -1, 1)


def _scale_legend() -> list[LegendEntry]:
    labels = {
        0: '1/8 of an even share or less',
        1 / 3: '1/2',
        1 / 2: 'an even share: 1 / anchors',
        2 / 3: '2 times',
        1: '8 times or more',
    }
    grey = np.full((1, len(labels), 3), 128, np.uint8)
    colours = _heat_overlay(grey, np.array([[*labels]]))[0]
    return list(zip(labels.values(), colours, strict=True))


def draw_clusters(
    image: PreparedImage,
    layers: dict[int, TokenClusters],
    path: str | Path,
    *,
    scales: Sequence[int] | None = None,
) -> None:
    """Draw every cluster in the mean colour of its pixels.

    A row begins with the image and has a picture of each layer. The caption
    tells how many clusters have pixels, and how many there are; where each
    token is a cluster, it says so and nothing is drawn. There is a row for
    each of ``scales``; None draws the coarsest of each layer. Other arguments
    are those of :func:`draw_anchor_maps`.

    Raises:
        UsageError: A layer has no such scale.
    """
    sheet = []
    for scale in (None,) if scales is None else scales:
        row = [Panel(fit(image.pixels, _CELL), 'input')]
        for i, layer in layers.items():
            made = layer.at(scale)
            h, w = layer.grid
            if made is None:
                picture = np.full_like(row[0].image, _NOTHING)
                what = f'each of {h} x {w} tokens is a cluster'
            else:
                ids = made[0][0].view(h, w).numpy().astype(np.int32)
                ids = enlarge(ids, image, smooth=False)
                picture = _superpixels(image.pixels, ids, _CELL)
                shown = len(np.unique(ids))
                what = f'{shown} of {made[1]} clusters, {h} x {w} tokens'
            which = min(layer.scales) if scale is None else scale
            name = layer.name.removesuffix('.attn')
            title = f'layer {i}, scale {which}\n{name}\n{what}'
            row.append(Panel(picture, title))
        sheet += [row[j : j + _COLUMNS] for j in range(0, len(row), _COLUMNS)]
    draw_panels(sheet, path)


def _superpixels(image: np.ndarray, ids: np.ndarray, cell: int) -> np.ndarray:
    """Regions of an image in their mean colour, scaled, with thin borders."""
    flat = ids.ravel()
    sums = [np.bincount(flat, channel) for channel in image.reshape(-1, 3).T]
    counts = np.maximum(np.bincount(flat), 1)
    colours = np.uint8(np.round(np.stack(sums, 1) / counts[:, None]))
    # Darker lines, or lighter ones where it is dark.
    dark = cv2.cvtColor(colours[None], cv2.COLOR_RGB2GRAY)[0] <= 64
    lines = colours // 3 * 2 + 85 * dark[:, None].astype(np.uint8)
    big = fit(ids, cell, smooth=False)
    # Of two regions beside each other, the one with the greater number.
    border = cv2.erode(np.float32(big), np.ones((3, 3))) < big
    return np.where(border[..., None], lines[big], colours[big])


def _strides(size: Sequence[int], grid: Sequence[int]) -> tuple[float, float]:
    """Strides s with ceil(size / s) == grid on both axes: low <= s < high."""
    pairs = list(zip(size, grid, strict=True))
    high = min(a / (n - 1) if n > 1 else math.inf for a, n in pairs)
    return max(a / n for a, n in pairs), high


def is_map(size: Sequence[int], grid: Sequence[int]) -> bool:
    """Tell if one stride takes an image of that size to that grid."""
    low, high = _strides(size, grid)
    return low < high


def covered_size(size: Sequence[int], grid: Sequence[int]) -> tuple[int, int]:
    """Height and width that a grid of cells covers, px.

    A network pads an image to whole cells, so the last ones reach beyond it:
    100 px are seven cells of 16 px, which cover 112. The stride is the power
    of two that gives this grid, or else the least whole number that does;
    where there is none, the cells are taken to cover the input.
    """
    low, high = _strides(size, grid)
    for stride in (2 ** math.ceil(math.log2(low)), math.ceil(low)):
        if stride < high:
            return grid[0] * stride, grid[1] * stride
    return size[0], size[1]


def enlarge(
    token_map: np.ndarray, image: PreparedImage, *, smooth: bool = True
) -> np.ndarray:
    """Bring a map of cells to the pixels of the image.

    Args:
        token_map: A value for each cell, (H, W), or a colour, (H, W, 3).
        image: Of which the cells cover the inputs, padding included.
        smooth: Interpolate bilinearly, or fill the cells.
    """
    h, w = covered_size(image.inputs.shape[2:], token_map.shape[:2])
    method = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST_EXACT
    big = cv2.resize(token_map, (w, h), interpolation=method)
    return big[: image.pixels.shape[0], : image.pixels.shape[1]]


def _heat_overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A grey version of an image, coloured from blue (0) to red (1)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    heat = np.round(255 * np.clip(heat, 0, 1)).astype(np.uint8)
    colours = cv2.applyColorMap(heat, cv2.COLORMAP_TURBO)[..., ::-1]
    return cv2.addWeighted(cv2.merge([grey] * 3), 0.35, colours, 0.6, 12)
