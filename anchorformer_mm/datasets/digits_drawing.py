"""Draw what a digits scene is made of: strokes, backgrounds and colours.

Images are BGR, sizes are ``(width, height)`` as in mmcv.
"""

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np

_FIELD_SCALE = 6  # px of the smooth ink field a scan pixel
_MAX_TEXTURE = 26.0  # luma levels to either side of a background's own


@dataclass(frozen=True)
class Glyph:
    """One digit ready to be pasted.

    Attributes:
        alpha: Opacity between 0 and 1, shape (h + 2, w + 2): the stroke's
            tight box and one pixel of its soft edge all around.
        mask: The stroke, opacity of at least one half, shape (h, w), bool.
    """

    alpha: np.ndarray
    mask: np.ndarray


def render_glyph(
    rng: np.random.Generator,
    scan: np.ndarray,
    height: float,
    room: tuple[int, int],
) -> Glyph:
    """Draw a scan as a clean stroke, slightly turned, slanted and stretched.

    Args:
        rng: Source of the distortion and of the stroke's width.
        scan: Ink between 0 and 1, shape (8, 8).
        height: Height of the stroke in px, met within 2 px.
        room: Width and height in px that the stroke must not exceed; one
            that would is made smaller.
    """
    field = _ink_field(scan)
    angle = np.deg2rad(rng.uniform(-12, 12))
    slant = rng.uniform(-0.25, 0.25)
    aspect = np.exp(rng.uniform(-0.15, 0.15))
    threshold = rng.uniform(0.45, 0.6)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    linear = turn @ np.array([[aspect, slant], [0, 1]])

    # A first pass at the field's own scale finds the stroke's extent there.
    side = 2 * len(field)
    centre = (len(field) - 1) / 2
    shift = side / 2 - linear @ [centre, centre]
    drawn = _warp(field, linear, shift, (side, side))
    x, y, w, h = _tight_box(drawn >= threshold)
    # One pixel less, since the second pass may round the extent up.
    scale = min(height / h, (room[1] - 1) / h, (room[0] - 1) / w)

    pad = 4
    canvas = (round(w * scale) + 2 * pad, round(h * scale) + 2 * pad)
    drawn = _warp(
        field, linear * scale, (shift - [x, y]) * scale + pad, canvas
    )
    # The edge is about 1.5 px wide, whatever the size of the digit.
    gain = max(h * scale / 12, 1.3)
    alpha = np.clip((drawn - threshold) * gain + 0.5, 0, 1)
    x, y, w, h = _tight_box(alpha >= 0.5)
    alpha = alpha[y - 1 : y + h + 1, x - 1 : x + w + 1]
    return Glyph(alpha=alpha, mask=alpha[1:-1, 1:-1] >= 0.5)


def make_background(
    rng: np.random.Generator, size: tuple[int, int]
) -> np.ndarray:
    """Draw a textured background: gradient, noise octaves and stripes.

    Args:
        rng: Source of every choice.
        size: Width and height in px.

    Returns:
        np.ndarray: Shape (H, W, 3), float32 between 0 and 255; dark or
        light, never mid-grey, so that an ink in strong contrast exists.
    """
    level = rng.uniform(*((25, 95) if rng.random() < 0.5 else (160, 230)))
    first = random_colour(rng, level, saturation=(0.05, 0.6))
    second = random_colour(rng, level, saturation=(0.05, 0.6))
    blend = _gradient(rng, size) + 0.5 * _noise(rng, size, cells=3)
    blend = np.clip(blend / 2 + 0.5, 0, 1)[..., None]

    texture = rng.uniform(0, 1) * _gradient(rng, size)
    for cells in (3, 6, 12, 24):
        texture = texture + rng.uniform(0, 0.6) * _noise(rng, size, cells)
    if rng.random() < 0.4:
        texture = texture + rng.uniform(0.3, 1) * _stripes(rng, size)
    grain = rng.standard_normal(texture.shape, np.float32)
    texture = texture + rng.uniform(0, 0.1) * grain
    texture *= rng.uniform(12, _MAX_TEXTURE) / np.abs(texture).max()

    image = first + blend * (second - first) + texture[..., None]
    return np.clip(image, 0, 255).astype(np.float32)


def random_colour(
    rng: np.random.Generator,
    target_luma: float,
    saturation: tuple[float, float],
) -> np.ndarray:
    """Return a BGR colour of random hue and given luma, shape (3,)."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), 1)
    colour = np.array(rgb[::-1], np.float32) * 255
    level = luma(colour)
    if level >= target_luma:
        return colour * np.float32(target_luma / level)
    # Towards white: its own 255 cannot be reached by brightening a hue.
    share = np.float32((target_luma - level) / (255 - level))
    return colour + share * (255 - colour)


def luma(image: np.ndarray) -> np.ndarray:
    """Return the BT.601 luma of BGR values, shape (..., 3) to (...)."""
    blue, green, red = np.moveaxis(np.asarray(image, np.float32), -1, 0)
    return (
        np.float32(0.114) * blue
        + np.float32(0.587) * green
        + np.float32(0.299) * red
    )


def _ink_field(scan: np.ndarray) -> np.ndarray:
    """Upscale a scan to a smooth field whose level lines are the stroke."""
    scale = _FIELD_SCALE
    field = cv2.resize(
        np.pad(scan.astype(np.float32), 2),
        None,
        fx=scale,
        fy=scale,
        interpolation=cv2.INTER_CUBIC,
    )
    field = cv2.GaussianBlur(field, (0, 0), 0.25 * scale)
    # Faint thin strokes and small loops, which 8 x 8 pixels blur away, come
    # back when each place is compared with its surroundings.
    return 2 * field - cv2.GaussianBlur(field, (0, 0), 1.2 * scale)


def _warp(
    field: np.ndarray,
    linear: np.ndarray,
    shift: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray:
    matrix = np.column_stack([linear, shift])
    return cv2.warpAffine(field, matrix, size, flags=cv2.INTER_LINEAR)


def _tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    return cv2.boundingRect(mask.astype(np.uint8))


def _ramp(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Distance along a random direction in px, 0 at the centre, (H, W)."""
    angle = rng.uniform(0, 2 * np.pi)
    x = np.arange(size[0], dtype=np.float32) - np.float32((size[0] - 1) / 2)
    y = np.arange(size[1], dtype=np.float32) - np.float32((size[1] - 1) / 2)
    along_x, along_y = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return along_x * x + along_y * y[:, None]


def _gradient(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Linear ramp in a random direction, within -1 and 1, shape (H, W)."""
    return _ramp(rng, size) / np.float32(np.hypot(*size) / 2)


def _noise(
    rng: np.random.Generator, size: tuple[int, int], cells: int
) -> np.ndarray:
    """Smooth noise, ``cells`` along the longer side, shape (H, W)."""
    side = max(size)
    grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    noise = cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
    return noise[: size[1], : size[0]]


def _stripes(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Parallel bands, soft or hard, within -1 and 1, shape (H, W)."""
    period = np.exp(rng.uniform(np.log(8), np.log(48)))
    hardness = rng.uniform(0.5, 4)
    wave = np.sin(_ramp(rng, size) * np.float32(2 * np.pi / period))
    return np.tanh(np.float32(hardness) * wave)
