"""Scenes of real handwritten digits on textured backgrounds.

The handwriting is scikit-learn's: 1,797 scans of 8 x 8 pixels. Images are
BGR uint8, sizes are ``(width, height)`` as in mmcv. The files are written by
``tools/dataset_converters/make_digits.py``.
"""

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np

DIGIT_CLASSES = (
    *('zero', 'one', 'two', 'three', 'four'),
    *('five', 'six', 'seven', 'eight', 'nine'),
)
# One RGB colour a class.
PALETTE = (
    *((220, 20, 60), (0, 128, 255), (60, 179, 60), (255, 165, 0)),
    *((148, 0, 211), (0, 206, 209), (255, 105, 180), (154, 205, 50)),
    *((139, 69, 19), (112, 128, 144)),
)
SEGMENTATION_CLASSES = ('background', *DIGIT_CLASSES)
SEGMENTATION_PALETTE = ((0, 0, 0), *PALETTE)

MIN_DIGIT_HEIGHT = 16  # px: two a scan pixel, still legible
MAX_DIGITS = 8
EMPTY_SHARE = 0.03
MIN_CONTRAST = 80.0  # luma levels of 255, ink to any background pixel
MIN_INK_DISTANCE = 80.0  # BGR levels, between digits whose boxes meet
MIN_VISIBLE = 0.6  # share of a digit's stroke
MAX_BOX_OVERLAP = 0.4  # intersection over the smaller box
SCENE_MARGIN = 1  # px between a box and the edge: the stroke's soft edge

_PLACEMENTS = 20  # tries for one digit, after which it is left out


@dataclass(frozen=True)
class Scans:
    """M handwritten digits.

    Attributes:
        images: Ink between 0 and 1, shape (M, 8, 8), float32.
        labels: Digit of each scan, shape (M,), int64.
        indices: Row of each scan in scikit-learn's set, shape (M,), int64.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Scene:
    """A composed scene of N digits, from the lowest to the topmost.

    Attributes:
        image: BGR, shape (H, W, 3), uint8.
        semantic: 0 for background, digit + 1 on visible strokes, shape
            (H, W), uint8.
        boxes: ``xywh`` in px, tight around the whole stroke, also where
            another digit covers it, shape (N, 4), int64.
        labels: Digits, shape (N,), int64.
        masks: Whole strokes, shape (N, H, W), bool.
        visible: Share of each stroke that no other digit covers, shape (N,).
        inks: BGR colours, shape (N, 3), float32.
        scans: Rows in scikit-learn's set, shape (N,), int64.
    """

    image: np.ndarray
    semantic: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    visible: np.ndarray
    inks: np.ndarray
    scans: np.ndarray


def load_scans(split: str | None = None) -> Scans:
    """Load scikit-learn's scans, all of them or those of one split.

    The last fifth of each class is for validation. The set is roughly in
    the order of its writers, so this keeps most hands in one split only.

    Args:
        split: ``'train'``, ``'val'``, or None for all.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: ``split`` is none of the above.
    """
    if split not in ('train', 'val', None):
        text = f"split must be 'train', 'val' or None, got {split!r}"
        raise ValueError(text)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        text = 'digits are made of its scans: pip install scikit-learn'
        raise ImportError(text) from error
    data = load_digits()
    for_val = np.zeros(len(data.target), bool)
    for digit in range(len(DIGIT_CLASSES)):
        rows = np.flatnonzero(data.target == digit)
        for_val[rows[len(rows) * 4 // 5 :]] = True
    chosen = {'train': ~for_val, 'val': for_val, None: for_val | True}[split]
    return Scans(
        images=(data.images[chosen] / 16).astype(np.float32),
        labels=data.target[chosen].astype(np.int64),
        indices=np.flatnonzero(chosen),
    )


def make_scene(
    rng: np.random.Generator,
    scans: Scans,
    size: tuple[int, int],
    digit_height: tuple[float, float] | None = None,
) -> Scene:
    """Compose one scene of up to eight digits.

    Args:
        rng: Source of every choice; the same state gives the same scene.
        scans: Handwriting to draw from.
        size: Width and height of the scene in px.
        digit_height: Smallest and largest height in px, drawn
            log-uniformly; by default 16 and half the scene's shorter side.

    Returns:
        Scene: Every ink is ``MIN_CONTRAST`` away from the background, every
        digit lies inside the scene, and ``MIN_VISIBLE`` of it is visible.
    """
    low, high = digit_height or (MIN_DIGIT_HEIGHT, min(size) // 2)
    canvas = _Canvas(make_background(rng, size))
    number = int(rng.integers(1, MAX_DIGITS + 1))
    if rng.random() < EMPTY_SHARE:
        number = 0
    heights = np.exp(rng.uniform(np.log(low), np.log(high), number))
    kept = []
    # Large digits first: what comes later lies on top, and a small digit
    # under a large one would be lost.
    for height in sorted(heights, reverse=True):
        row = int(rng.integers(len(scans)))
        alpha = render_glyph(rng, scans.images[row], height, canvas.room)
        if canvas.try_add(rng, alpha):
            kept.append(row)
    return canvas.scene(scans.labels[kept], scans.indices[kept])


def make_single(
    rng: np.random.Generator, scan: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Compose an image that one digit fills, close to the middle.

    Args:
        rng: Source of every choice.
        scan: Ink between 0 and 1, shape (8, 8).
        size: Width and height of the image in px.

    Returns:
        np.ndarray: BGR, shape (H, W, 3), uint8.
    """
    canvas = _Canvas(make_background(rng, size))
    height = rng.uniform(0.75, 0.9) * min(size)
    alpha = render_glyph(rng, scan, height, canvas.room)
    canvas.try_add(rng, alpha, reach=0.5)
    return canvas.image.round().astype(np.uint8)


def render_glyph(
    rng: np.random.Generator,
    scan: np.ndarray,
    height: float,
    room: tuple[int, int],
) -> np.ndarray:
    """Draw a scan as a clean stroke, slightly turned, slanted and stretched.

    Args:
        rng: Source of the distortion and of the stroke's width.
        scan: Ink between 0 and 1, shape (8, 8).
        height: Height of the stroke in px, met within 2 px.
        room: Width and height in px that the stroke must not exceed; one
            that would is made smaller.

    Returns:
        np.ndarray: Opacity between 0 and 1, shape (h + 2, w + 2): the
        stroke's tight box, and one pixel of its soft edge all around. The
        stroke is where it is at least one half.
    """
    field = _ink_field(scan)
    angle = np.deg2rad(rng.uniform(-12, 12))
    slant = rng.uniform(-0.25, 0.25)
    aspect = np.exp(rng.uniform(-0.15, 0.15))
    threshold = rng.uniform(0.45, 0.6)
    cos, sin = np.cos(angle), np.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]]) @ [[aspect, slant], [0, 1]]

    # A first pass at the field's own scale finds the stroke's extent there.
    side = 2 * len(field)
    centre = (len(field) - 1) / 2
    shift = side / 2 - linear @ [centre, centre]
    drawn = cv2.warpAffine(field, np.c_[linear, shift], (side, side))
    x, y, w, h = cv2.boundingRect(np.uint8(drawn >= threshold))
    # One pixel less, since the second pass may round the extent up.
    scale = min(height / h, (room[1] - 1) / h, (room[0] - 1) / w)

    pad = 4
    canvas = (round(w * scale) + 2 * pad, round(h * scale) + 2 * pad)
    matrix = np.c_[linear * scale, (shift - [x, y]) * scale + pad]
    drawn = cv2.warpAffine(field, matrix, canvas)
    # The edge is about 1.5 px wide, whatever the size of the digit.
    gain = max(h * scale / 12, 1.3)
    alpha = np.clip((drawn - threshold) * gain + 0.5, 0, 1)
    x, y, w, h = cv2.boundingRect(np.uint8(alpha >= 0.5))
    return alpha[y - 1 : y + h + 1, x - 1 : x + w + 1]


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
    half = np.float32(np.hypot(*size) / 2)
    blend = _ramp(rng, size) / half + 0.5 * _noise(rng, size, cells=3)
    blend = np.clip(blend / 2 + 0.5, 0, 1)[..., None]

    texture = rng.uniform(0, 1) * (_ramp(rng, size) / half)
    for cells in (3, 6, 12, 24):
        texture = texture + rng.uniform(0, 0.6) * _noise(rng, size, cells)
    if rng.random() < 0.4:
        texture = texture + rng.uniform(0.3, 1) * _stripes(rng, size)
    grain = rng.standard_normal(texture.shape, np.float32)
    texture = texture + rng.uniform(0, 0.1) * grain
    # Luma levels to either side of the background's own.
    texture *= rng.uniform(12, 26) / np.abs(texture).max()

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
    blue, green = np.float32(0.114) * blue, np.float32(0.587) * green
    return blue + green + np.float32(0.299) * red


def _ink_field(scan: np.ndarray) -> np.ndarray:
    """Upscale a scan to a smooth field whose level lines are the stroke."""
    scale = 6  # px of the field a scan pixel
    padded = np.pad(scan.astype(np.float32), 2)
    side = scale * len(padded)
    field = cv2.resize(padded, (side, side), interpolation=cv2.INTER_CUBIC)
    field = cv2.GaussianBlur(field, (0, 0), 0.25 * scale)
    # Faint thin strokes and small loops, which 8 x 8 pixels blur away, come
    # back when each place is compared with its surroundings.
    return 2 * field - cv2.GaussianBlur(field, (0, 0), 1.2 * scale)


def _ramp(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Distance along a random direction in px, 0 at the centre, (H, W)."""
    angle = rng.uniform(0, 2 * np.pi)
    x = np.arange(size[0], dtype=np.float32) - np.float32((size[0] - 1) / 2)
    y = np.arange(size[1], dtype=np.float32) - np.float32((size[1] - 1) / 2)
    along_x, along_y = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return along_x * x + along_y * y[:, None]


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


class _Canvas:
    """A background and the digits pasted on it so far."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        rows, columns = image.shape[:2]
        self.room = (columns - 2 * SCENE_MARGIN, rows - 2 * SCENE_MARGIN)
        levels = luma(image)
        # Of an ink, where contrast to every pixel is left.
        ranges = (
            (0.0, levels.min() - MIN_CONTRAST),
            (levels.max() + MIN_CONTRAST, 255.0),
        )
        self._lumas = [(low, high) for low, high in ranges if low <= high]
        # Which digit each pixel shows, 0 for none.
        self._owner = np.zeros((rows, columns), np.int64)
        self._boxes = np.zeros((0, 4), np.int64)
        self._masks = np.zeros((0, rows, columns), bool)
        self._inks = np.zeros((0, 3), np.float32)

    def try_add(
        self, rng: np.random.Generator, alpha: np.ndarray, reach: float = 1.0
    ) -> bool:
        """Paste a digit where it fits; False when no such place is found.

        ``reach`` is the share of the free places, around the middle one,
        that are tried.
        """
        h, w = np.subtract(alpha.shape, 2)
        free = np.subtract(self.room, (w, h))
        span = (reach * free).round().astype(int)
        start = SCENE_MARGIN + (free - span) // 2
        for _ in range(_PLACEMENTS):
            x = int(start[0] + rng.integers(span[0] + 1))
            y = int(start[1] + rng.integers(span[1] + 1))
            low, high = self._lumas[int(rng.integers(len(self._lumas)))]
            ink = random_colour(rng, rng.uniform(low, high), (0.3, 1))
            if self._try_at(np.array([x, y, w, h]), alpha, ink):
                return True
        return False

    def scene(self, labels: np.ndarray, scans: np.ndarray) -> Scene:
        """Return what was composed, given each digit's label and scan."""
        classes = np.concatenate([[0], labels + 1]).astype(np.uint8)
        return Scene(
            image=self.image.round().astype(np.uint8),
            semantic=classes[self._owner],
            boxes=self._boxes,
            labels=labels,
            masks=self._masks,
            visible=self._count(self._owner) / self._masks.sum((1, 2)),
            inks=self._inks,
            scans=scans,
        )

    def _count(self, owners: np.ndarray) -> np.ndarray:
        """Count pixels of each digit, shape (N,)."""
        number = len(self._masks) + 1
        return np.bincount(owners.ravel(), minlength=number)[1:]

    def _try_at(
        self, box: np.ndarray, alpha: np.ndarray, ink: np.ndarray
    ) -> bool:
        ends = self._boxes[:, :2] + self._boxes[:, 2:]
        start = np.maximum(self._boxes[:, :2], box[:2])
        end = np.minimum(ends, box[:2] + box[2:])
        shared = np.clip(end - start, 0, None).prod(1)
        smaller = np.minimum(self._boxes[:, 2:].prod(1), box[2:].prod())
        if (shared > MAX_BOX_OVERLAP * smaller).any():
            return False
        distance = np.linalg.norm(self._inks[shared > 0] - ink, axis=1)
        if (distance < MIN_INK_DISTANCE).any():
            return False
        x, y, w, h = box
        place = np.s_[y : y + h, x : x + w]
        mask = alpha[1:-1, 1:-1] >= 0.5
        hidden = self._count(self._owner[place][mask])
        left = self._count(self._owner) - hidden
        if (left < MIN_VISIBLE * self._masks.sum((1, 2))).any():
            return False
        soft = self.image[y - 1 : y + h + 1, x - 1 : x + w + 1]
        soft += alpha[..., None] * (ink - soft)
        whole = np.zeros((1, *self._owner.shape), bool)
        whole[0][place] = mask
        self._masks = np.concatenate([self._masks, whole])
        self._owner[whole[0]] = len(self._masks)
        self._boxes = np.concatenate([self._boxes, box[None]])
        self._inks = np.concatenate([self._inks, ink[None]])
        return True
