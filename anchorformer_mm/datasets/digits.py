"""Compose scenes of real handwritten digits on textured backgrounds.

The handwriting is scikit-learn's: 1,797 scans of 8 x 8 pixels. Images are
BGR uint8, sizes are ``(width, height)`` as in mmcv.
"""

from dataclasses import dataclass

import numpy as np

from anchorformer_mm.datasets.digits_drawing import (
    Glyph,
    luma,
    make_background,
    random_colour,
    render_glyph,
)

DIGIT_CLASSES = (
    'zero',
    'one',
    'two',
    'three',
    'four',
    'five',
    'six',
    'seven',
    'eight',
    'nine',
)
# One RGB colour a class.
PALETTE = (
    (220, 20, 60),
    (0, 128, 255),
    (60, 179, 60),
    (255, 165, 0),
    (148, 0, 211),
    (0, 206, 209),
    (255, 105, 180),
    (154, 205, 50),
    (139, 69, 19),
    (112, 128, 144),
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
        raise ValueError(
            f"split must be 'train', 'val' or None, got {split!r}"
        )
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'the digits data set is made from the scans that scikit-learn '
            'carries: pip install scikit-learn'
        ) from error
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


def default_digit_height(size: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest and largest height in px for scenes of ``size``."""
    return MIN_DIGIT_HEIGHT, min(size) // 2


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
    low, high = digit_height or default_digit_height(size)
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
        glyph = render_glyph(rng, scans.images[row], height, canvas.room)
        if canvas.try_add(rng, glyph):
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
    glyph = render_glyph(rng, scan, height, canvas.room)
    canvas.try_add(rng, glyph, reach=0.5)
    return canvas.image.round().astype(np.uint8)


class _Canvas:
    """A background and the digits pasted on it so far."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        rows, columns = image.shape[:2]
        self.room = (columns - 2 * SCENE_MARGIN, rows - 2 * SCENE_MARGIN)
        levels = luma(image)
        self._darkest, self._lightest = levels.min(), levels.max()
        # Which digit each pixel shows, -1 for none.
        self._owner = np.full((rows, columns), -1, np.int64)
        self._boxes = np.zeros((0, 4), np.int64)
        self._masks: list[np.ndarray] = []
        self._inks: list[np.ndarray] = []

    def try_add(
        self, rng: np.random.Generator, glyph: Glyph, reach: float = 1.0
    ) -> bool:
        """Paste the glyph where it fits; False when no such place is found.

        ``reach`` is the share of the free places, around the middle one,
        that are tried.
        """
        h, w = glyph.mask.shape
        free = np.subtract(self.room, (w, h))
        span = (reach * free).round().astype(int)
        start = SCENE_MARGIN + (free - span) // 2
        for _ in range(_PLACEMENTS):
            x = int(start[0] + rng.integers(span[0] + 1))
            y = int(start[1] + rng.integers(span[1] + 1))
            box = np.array([x, y, w, h])
            ink = self._pick_ink(rng)
            if self._fits(box, glyph.mask, ink):
                self._paste(box, glyph, ink)
                return True
        return False

    def scene(self, labels: np.ndarray, scans: np.ndarray) -> Scene:
        """Return what was composed, given each digit's label and scan."""
        classes = np.concatenate([[0], labels + 1]).astype(np.uint8)
        areas = np.array([mask.sum() for mask in self._masks])
        return Scene(
            image=self.image.round().astype(np.uint8),
            semantic=classes[self._owner + 1],
            boxes=self._boxes,
            labels=labels,
            masks=np.array(self._masks, bool).reshape(-1, *self._owner.shape),
            visible=self._shown() / areas,
            inks=np.array(self._inks, np.float32).reshape(-1, 3),
            scans=scans,
        )

    def _pick_ink(self, rng: np.random.Generator) -> np.ndarray:
        """Draw an ink on a side of the background where contrast is left."""
        darker = self._darkest - MIN_CONTRAST
        lighter = self._lightest + MIN_CONTRAST
        ranges = [(0.0, darker), (lighter, 255.0)]
        ranges = [(low, high) for low, high in ranges if low <= high]
        low, high = ranges[int(rng.integers(len(ranges)))]
        return random_colour(rng, rng.uniform(low, high), saturation=(0.3, 1))

    def _shown(self) -> np.ndarray:
        """Count the visible pixels of each digit, shape (N,)."""
        counts = np.bincount(
            self._owner.ravel() + 1, minlength=len(self._masks) + 1
        )
        return counts[1:]

    def _fits(
        self, box: np.ndarray, mask: np.ndarray, ink: np.ndarray
    ) -> bool:
        if not self._masks:
            return True
        start = np.maximum(self._boxes[:, :2], box[:2])
        end = np.minimum(
            self._boxes[:, :2] + self._boxes[:, 2:], box[:2] + box[2:]
        )
        shared = np.clip(end - start, 0, None).prod(1)
        smaller = np.minimum(self._boxes[:, 2:].prod(1), box[2:].prod())
        if (shared > MAX_BOX_OVERLAP * smaller).any():
            return False
        met = np.array(self._inks)[shared > 0]
        if (np.linalg.norm(met - ink, axis=1) < MIN_INK_DISTANCE).any():
            return False
        x, y, w, h = box
        hidden = np.bincount(
            self._owner[y : y + h, x : x + w][mask] + 1,
            minlength=len(self._masks) + 1,
        )[1:]
        areas = np.array([mask.sum() for mask in self._masks])
        return bool((self._shown() - hidden >= MIN_VISIBLE * areas).all())

    def _paste(self, box: np.ndarray, glyph: Glyph, ink: np.ndarray) -> None:
        x, y, w, h = box
        soft = self.image[y - 1 : y + h + 1, x - 1 : x + w + 1]
        soft += glyph.alpha[..., None] * (ink - soft)
        self._owner[y : y + h, x : x + w][glyph.mask] = len(self._masks)
        whole = np.zeros(self._owner.shape, bool)
        whole[y : y + h, x : x + w] = glyph.mask
        self._masks.append(whole)
        self._boxes = np.concatenate([self._boxes, box[None]])
        self._inks.append(ink)
