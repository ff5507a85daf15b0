"""Where the tokens of a network lie on the image that it was given."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor


def _strides(size: Sequence[int], grid: Sequence[int]) -> tuple[float, float]:
    """Strides s with ceil(size / s) == grid on both axes: low <= s < high."""
    low = max(a / n for a, n in zip(size, grid, strict=True))
    high = min(
        a / (n - 1) if n > 1 else math.inf
        for a, n in zip(size, grid, strict=True)
    )
    return low, high


def is_map(size: Sequence[int], grid: Sequence[int]) -> bool:
    """Whether one stride takes an image of that size to that grid."""
    low, high = _strides(size, grid)
    return low < high


def covered_size(size: Sequence[int], grid: Sequence[int]) -> tuple[int, int]:
    """Height and width that a grid of cells covers, px.

    A network pads an image to whole cells, so the last ones reach beyond it:
    100 px are seven cells of 16 px, which cover 112.

    Args:
        size: Height and width of the network's input, px.
        grid: Rows and columns of cells, from its top left corner.

    Returns:
        tuple[int, int]: Rows and columns times the stride. The stride is the
        power of two that gives this grid, or else the least whole number that
        does; where there is none, the cells are taken to cover the input.
    """
    low, high = _strides(size, grid)
    for stride in (2 ** math.ceil(math.log2(low)), math.ceil(low)):
        if stride < high:
            return grid[0] * stride, grid[1] * stride
    return size[0], size[1]


def enlarge(
    token_map: np.ndarray,
    input_size: Sequence[int],
    image_size: Sequence[int],
    *,
    smooth: bool = True,
) -> np.ndarray:
    """Bring a map of cells to the pixels of the image.

    Args:
        token_map: A value for each cell, (H, W), or a colour, (H, W, 3).
        input_size: Height and width of the network's input, px, with what
            was padded at its right and bottom.
        image_size: Those of the image in it, px.
        smooth: Interpolate bilinearly, or fill the cells.

    Returns:
        np.ndarray: Shape (h, w) or (h, w, 3) with ``image_size`` (h, w).
    """
    h, w = covered_size(input_size, token_map.shape[:2])
    method = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST_EXACT
    big = cv2.resize(token_map, (w, h), interpolation=method)
    return big[: image_size[0], : image_size[1]]


def to_map(
    x: Tensor, size: Sequence[int], num_extra_tokens: int = 0
) -> Tensor:
    """Lay out what a layer gives as a map.

    Args:
        x: Map (B, C, H, W) or (B, H, W, C), or tokens (B, n, C) row by row
            after those that are not of the map.
        size: Height and width of the network's input, px.
        num_extra_tokens: Class tokens in front of the others.

    Returns:
        Tensor: Shape (B, C, H, W).

    Raises:
        ValueError: ``x`` is no map of such an image.
    """
    if x.ndim == 4:
        last = is_map(size, x.shape[1:3]) and not is_map(size, x.shape[2:])
        return x.permute(0, 3, 1, 2) if last else x
    if x.ndim == 3:
        n = x.shape[1] - num_extra_tokens
        # At most one: more rows want a lesser stride, fewer columns a greater.
        for h in range(1, n + 1):
            if n % h == 0 and is_map(size, (h, n // h)):
                patches = x[:, num_extra_tokens:].transpose(1, 2)
                return patches.unflatten(2, (h, n // h))
    raise ValueError(
        f'a tensor of shape {tuple(x.shape)} is no map of an image of '
        f'{size[0]} x {size[1]} px with {num_extra_tokens} class tokens'
    )


def heat_overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Colour a grey version of an image by a heat map.

    Args:
        image: RGB, uint8, shape (h, w, 3).
        heat: From 0 (blue) to 1 (red), shape (h, w).

    Returns:
        np.ndarray: RGB, uint8, shape (h, w, 3).
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    heat = np.round(255 * np.clip(heat, 0, 1)).astype(np.uint8)
    colours = cv2.applyColorMap(heat, cv2.COLORMAP_TURBO)
    colours = cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)
    grey = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(grey, 0.35, colours, 0.6, 12)
