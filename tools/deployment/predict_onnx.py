"""Predict with an ONNX file: boxes, a label map or a class for each image.

Needs onnxruntime, NumPy and Pillow, nothing else: take this one file into a
product. What the model expects is read from the metadata of the ONNX file.
Images are RGB, uint8, shape (height, width, 3); boxes are x1, y1, x2, y2.
"""

import argparse
import colorsys
import contextlib
import inspect
import json
import logging
import os
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import (
    Image,
    ImageDraw,
    ImageFont,
    ImageOps,
    UnidentifiedImageError,
)

# Of all that Pillow opens: for some of the others it starts programs.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')
SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
INPUT_TYPES = {'tensor(float)': np.float32, 'tensor(uint8)': np.uint8}
# H and W are those of the input.
OUTPUTS = dict(
    detection=dict(boxes=('K', 4), scores=('K',), labels=('K',)),
    segmentation=dict(logits=(1, 'C', 'H', 'W')),
    classification=dict(scores=(1, 'C')),
)
# Of what the steps make: 3 GiB in floats.
MAX_SIDE, MAX_PIXELS, MAX_NAME = 2**14, 2**28, 1_000
# Controls, halves of characters, ends of lines and paragraphs.
BAD_CHARACTERS = ('Cc', 'Cs', 'Zl', 'Zp')


class InputError(Exception):
    """A model or an image that cannot be used; the message says why."""


def clean(text: str) -> str:
    """Without characters that do things to a terminal, or are none."""
    return ''.join(
        '?' if unicodedata.category(c) in BAD_CHARACTERS else c for c in text
    )


def reason_of(error: Exception) -> str:
    """What an error of a library says, in one line."""
    return ' '.join(str(error).split())[:300] or type(error).__name__


# ------------------------------------------------------ what a file refers to
# An ONNX file may have tensors in other files, and ONNX Runtime before 1.24
# opens any file of the machine that it names. Before it sees one, it is gone
# through here, for which little has to be known of its format, protobuf.

# For each kind of message the fields that have tensors in them, by number.
PARTS = dict(
    model={7: 'graph', 20: 'training', 25: 'function'},
    training={1: 'graph', 2: 'graph'},
    graph={1: 'node', 5: 'tensor', 15: 'sparse tensor'},
    function={7: 'node', 11: 'attribute'},
    node={5: 'attribute'},
    attribute={
        5: 'tensor',
        6: 'graph',
        10: 'tensor',
        11: 'graph',
        22: 'sparse tensor',
        23: 'sparse tensor',
    },
    **{'sparse tensor': {1: 'tensor', 2: 'tensor'}},
)
VARINT, BYTES, FIXED = 0, 2, {1: 8, 5: 4}
# Of a tensor: what tells where else its values are, and that they are there.
EXTERNAL_DATA, DATA_LOCATION = 13, 14


def has_external_data(content: bytes) -> bool:
    """Whether any tensor of an ONNX file has its values in another file.

    Raises:
        ValueError: It is no protobuf message.
    """
    todo = [('model', 0, len(content))]
    while todo:
        kind, start, end = todo.pop()
        for number, wire, first, last in read_fields(content, start, end):
            if kind == 'tensor':
                # 0 stands for this file. Other ways to write it are not
                # looked into: nobody writes it so.
                here = wire == VARINT and content[first:last] == b'\0'
                if number == EXTERNAL_DATA or (
                    number == DATA_LOCATION and not here
                ):
                    return True
            elif wire == BYTES and number in PARTS[kind]:
                todo.append((PARTS[kind][number], first, last))
    return False


def read_fields(
    content: bytes, start: int, end: int
) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, first byte and end of each field of a message."""
    at = start
    while at < end:
        tag, first = read_varint(content, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            last = read_varint(content, first, end)[1]
        elif wire == BYTES:
            length, first = read_varint(content, first, end)
            last = first + length
        else:
            # The others are groups, which ONNX has none of.
            last = first + FIXED.get(wire, end)
        # Readers differ in what they make of a tag of more than 32 bits.
        if last > end or not 0 < number < 2**29:
            raise ValueError(f'it is damaged at byte {at}')
        yield number, wire, first, last
        at = last


def read_varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        value |= (content[at] & 127) << shift
        at += 1
        if content[at - 1] < 128:
            return value, at
    raise ValueError(f'it is damaged at byte {at}')


# ---------------------------------------------------------------- the model


@dataclass
class Model:
    """An ONNX Runtime session, and what its file says of it."""

    path: Path
    session: ort.InferenceSession
    task: str
    classes: list[str]
    steps: list[dict]

    def batch(self, image: np.ndarray) -> np.ndarray:
        """Input of the network, of an image that is preprocessed."""
        port = self.session.get_inputs()[0]
        batch = image.transpose(2, 0, 1)[None]
        fits = all(
            want == have
            for want, have in zip(port.shape, batch.shape, strict=True)
            if isinstance(want, int)
        )
        if not fits:
            raise InputError(
                f'{self.path} takes the shape {port.shape}, but its '
                f'preprocessing makes {list(batch.shape)} of this image'
            )
        dtype = INPUT_TYPES[port.type]
        if dtype is np.uint8:
            batch = np.rint(batch)
        return np.ascontiguousarray(batch, dtype)

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name."""
        names = [output.name for output in self.session.get_outputs()]
        port = self.session.get_inputs()[0]
        try:
            outputs = self.session.run(None, {port.name: batch})
        except Exception as error:  # its errors have no common class
            raise InputError(
                f'{self.path} cannot be run: {reason_of(error)}'
            ) from error
        named = dict(zip(names, outputs, strict=True))
        check_results(self, named, batch.shape)
        return named


def load_model(path: Path, threads: int = 0) -> Model:
    """Open an ONNX file; ``threads`` 0 means one for each core."""
    session = open_session(path, threads)
    meta = session.get_modelmeta().custom_metadata_map
    missing = {'task', 'classes', 'preprocess'} - set(meta)
    if missing:
        raise InputError(
            f'{path} has no {", ".join(sorted(missing))} in its metadata: '
            'export it with export_onnx.py'
        )
    task = meta['task']
    if task not in OUTPUTS:
        raise InputError(
            f'{path}: task must be one of {", ".join(OUTPUTS)}, got '
            f'{task!r:.80}'
        )
    try:
        classes = read_list(meta, 'classes')
        steps = read_list(meta, 'preprocess')
        check_classes(classes)
        check_steps(steps)
    except ValueError as error:
        raise InputError(f'metadata of {path}: {error}') from error
    check_input(path, session)
    return Model(path, session, task, list(map(clean, classes)), steps)


def open_session(path: Path, threads: int) -> ort.InferenceSession:
    """Start a file in ONNX Runtime, if all its data is inside."""
    if not path.is_file():
        raise InputError(f'model not found: {path}')
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Its errors are raised as well.
    options.log_severity_level = 4
    # It would take some files for those of a format of its own.
    options.add_session_config_entry('session.load_model_format', 'ONNX')
    try:
        if path.stat().st_size >= 2**31:
            raise ValueError('with all data inside it is smaller than 2 GiB')
        content = path.read_bytes()
        if not has_external_data(content):
            # Not the path: it could be another file by now.
            session = ort.InferenceSession(
                content, options, providers=['CPUExecutionProvider']
            )
            require_text(session)
            return session
    except Exception as error:  # its errors have no common class
        raise InputError(
            f'{path} is no usable ONNX file: {reason_of(error)}'
        ) from error
    raise InputError(
        f'{path} has data in other files, and could name any file of this '
        'machine: save it with all data inside'
    )


def require_text(session: ort.InferenceSession) -> None:
    """Fail where texts of a file are none; they are decoded when asked for."""
    texts = [session.get_modelmeta().custom_metadata_map]
    for port in session.get_inputs() + session.get_outputs():
        texts += [port.name, port.shape]


def read_list(meta: dict[str, str], key: str) -> list:
    """A list of the metadata, which are JSON."""
    try:
        value = json.loads(meta[key])
    except (RecursionError, ValueError) as error:
        raise ValueError(
            f'{key} must be a JSON list, got {meta[key]!r:.80} ({error})'
        ) from None
    if not isinstance(value, list):
        raise ValueError(f'{key} must be a JSON list, got {meta[key]!r:.80}')
    return value


def check_classes(classes: list) -> None:
    """Refuse what cannot be written beside a box."""
    for i, name in enumerate(classes):
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise ValueError(
                f'classes[{i}] must be a name of at most {MAX_NAME} '
                f'characters, got {name!r:.80}'
            )


def check_input(path: Path, session: ort.InferenceSession) -> None:
    """Refuse inputs that are not one image."""
    ports = session.get_inputs()
    if [port.type in INPUT_TYPES for port in ports] != [True]:
        kinds = ', '.join(f'{port.name}: {port.type}' for port in ports)
        raise InputError(
            f'{path}: one input of {" or ".join(INPUT_TYPES)} is needed, got '
            f'{kinds}'
        )
    shape = ports[0].shape
    fits = len(shape) == 4 and all(
        want == have or not isinstance(have, int)
        for want, have in zip((1, 3), shape, strict=False)
    )
    if not fits:
        raise InputError(
            f'{path}: images go in one by one, the input must be (1, 3, H, '
            f'W), got {shape}'
        )


def check_outputs(model: Model) -> None:
    """Refuse a model whose outputs are not readable results."""
    names = [output.name for output in model.session.get_outputs()]
    wanted = OUTPUTS[model.task]
    if not set(wanted) <= set(names):
        detects = model.task == 'detection'
        advice = ': export it with --with-nms' if detects else ''
        raise InputError(
            f'{model.path}: {model.task} needs the outputs '
            f'{", ".join(wanted)}, got {", ".join(names)}{advice}'
        )


def check_results(
    model: Model, outputs: dict[str, np.ndarray], shape: tuple[int, ...]
) -> None:
    """Refuse outputs that are not what its task says.

    Args:
        model: What gave them.
        outputs: By name.
        shape: Of the input, (1, 3, H, W).
    """
    sizes = dict(H=shape[2], W=shape[3])
    for name, dims in OUTPUTS[model.task].items():
        array = outputs[name]
        kind = 'iu' if name == 'labels' else 'f'
        have = getattr(array, 'shape', None)
        fits = (
            isinstance(array, np.ndarray)
            and array.dtype.kind in kind
            and len(have) == len(dims)
            # There may be no boxes, but not no classes or pixels.
            and ('K' in dims or 0 not in have)
            # The first to have a letter says what it stands for.
            and all(
                sizes.setdefault(want, size) == size
                if isinstance(want, str)
                else want == size
                for want, size in zip(dims, have, strict=True)
            )
        )
        what = 'numbers from 0 on' if name == 'labels' else 'finite numbers'
        if not fits:
            text = ', '.join(
                f'{d} = {sizes[d]}' if d in sizes else f'{d}' for d in dims
            )
            raise InputError(
                f'output {name} of {model.path} must be {what} of the shape '
                f'({text}), got {getattr(array, "dtype", type(array))} {have}'
            )
        good = array >= 0 if name == 'labels' else np.isfinite(array)
        if not good.all():
            raise InputError(
                f'output {name} of {model.path} must be {what}, got '
                f'{array[~good][0]}'
            )


# ---------------------------------------------------------------- the image


def find_images(paths: Iterable[Path], deep: bool = False) -> list[Path]:
    """The images named, and for a folder all images in it, by name.

    Args:
        paths: Images and folders.
        deep: Whether to look into the folders of a folder as well.
    """
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(
            p
            for p in path.glob('**/*' if deep else '*')
            if p.suffix.lower() in SUFFIXES
        )
        if not inside:
            raise InputError(f'no image in the folder {path}')
        found += inside
    for path in found:
        if not path.is_file():
            raise InputError(f'image not found: {path}')
        try:
            with Image.open(path, formats=FORMATS):
                pass
        except Exception as error:
            raise unreadable(path, error) from error
    return found


def unreadable(path: Path, error: Exception) -> InputError:
    """In one line; the decoders' errors have no common class."""
    reason = reason_of(error)
    if isinstance(error, UnidentifiedImageError):
        reason = f'it is no image of {", ".join(FORMATS)}'
    return InputError(f'cannot read {path}: {reason}')


def read_image(path: Path) -> np.ndarray:
    """Any image as 8-bit RGB, upright, without its transparency."""
    try:
        with Image.open(path, formats=FORMATS) as opened:
            image = ImageOps.exif_transpose(opened)
        if image.mode.startswith('I'):  # 16 bits: keep the upper eight
            levels = np.asarray(image).astype(np.int64) >> 8
            image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
        elif image.mode == 'F':
            raise ValueError('its pixels are floats')
        elif 'transparency' in image.info:
            image = image.convert('RGBA')
        return np.asarray(image.convert('RGB'))
    except Exception as error:
        raise unreadable(path, error) from error


# -------------------------------------------------- the resizing of OpenCV
# Models are trained on its arithmetic, and Pillow's smooths where it shrinks.


def resize(image: np.ndarray, size: Iterable[int], kind: str) -> np.ndarray:
    """Resize (H, W, C) to ``size`` (height, width) as ``cv2.resize`` does."""
    size = tuple(size)
    # OpenCV averages areas only where both sides shrink.
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    if kind == 'area' and not shrinks:
        kind = 'enlarged area'
    out = image
    for axis in (0, 1):
        if size[axis] == image.shape[axis]:
            continue
        index, weight = WEIGHTS[kind](image.shape[axis], size[axis])
        # One tap after another: a plane as large as the result is enough.
        shape = [-1 if i == axis else 1 for i in range(image.ndim)]
        out = sum(
            out.take(i, axis) * w.reshape(shape)
            for i, w in zip(index, weight, strict=True)
        )
    if image.dtype == np.uint8 and out.dtype != np.uint8:
        return np.rint(out).clip(0, 255).astype(np.uint8)
    return out


def taps(source: int, first: np.ndarray, weight: list) -> tuple:
    """Neighbouring pixels from ``first`` on, repeated past the edge."""
    index = [(first + i).clip(0, source - 1) for i in range(len(weight))]
    return index, [np.asarray(w, np.float32) for w in weight]


def centres(source: int, target: int) -> tuple:
    """Pixel left of the centre of each new pixel, and the way on from it."""
    at = (np.arange(target) + 0.5) * (source / target) - 0.5
    first = np.floor(at).astype(int)
    return first, at - first


def nearest(source: int, target: int) -> tuple:
    at = np.floor(np.arange(target) * (1 / (target / source)))
    return taps(source, at.astype(int), [np.ones(target)])


def bilinear(source: int, target: int) -> tuple:
    first, t = centres(source, target)
    return taps(source, first, [1 - t, t])


def bicubic(source: int, target: int) -> tuple:
    a = -0.75
    first, t = centres(source, target)
    far = [a * ((d - 5) * d + 8) * d - 4 * a for d in (t + 1, 2 - t)]
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
    return taps(source, first - 1, [far[0], *near, far[1]])


def area(source: int, target: int) -> tuple:
    """Each new pixel is the mean of what it covers."""
    scale = source / target
    left = np.arange(target) * scale
    first = np.floor(left + 1e-9).astype(int)
    count = int(np.ceil(scale)) + 1
    ends = [np.minimum(first + i + 1, left + scale) for i in range(count)]
    starts = [np.maximum(first + i, left) for i in range(count)]
    cover = [
        np.maximum(end - start, 0) / scale
        for start, end in zip(starts, ends, strict=True)
    ]
    return taps(source, first, cover)


def enlarged_area(source: int, target: int) -> tuple:
    inverse = target / source
    first = np.floor(np.arange(target) * (1 / inverse)).astype(int)
    # In single precision, in which a hair less than one pixel is one.
    t = np.float32(np.arange(1, target + 1) - (first + 1) * inverse)
    t = np.where(t > 0, t % 1, 0)
    return taps(source, first, [1 - t, t])


WEIGHTS = {
    'nearest': nearest,
    'bilinear': bilinear,
    'bicubic': bicubic,
    'area': area,
    'enlarged area': enlarged_area,
}
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'area')


# -------------------------------------------------------- the preprocessing


@dataclass
class Prepared:
    """An image on its way into the model.

    A point (x, y) of the original is at ``scale * (x, y) - offset`` in
    ``pixels``, which may be padded at the right and bottom.
    """

    pixels: np.ndarray
    scale: np.ndarray
    offset: np.ndarray


def preprocess(image: np.ndarray, steps: list[dict]) -> Prepared:
    """Take an image through the steps that the metadata lists."""
    prepared = Prepared(image, np.ones(2), np.zeros(2))
    for step in steps:
        arguments = {k: v for k, v in step.items() if k != 'op'}
        STEPS[step['op']](prepared, **arguments)
    return prepared


def read_input(model: Model, path: Path) -> np.ndarray:
    """Input of the network for an image file, (1, 3, H, W)."""
    return model.batch(preprocess(read_image(path), model.steps).pixels)


# What the arguments of the steps may be: whether a value is, and in words.
def is_flag(value: object) -> bool:
    return isinstance(value, bool)


def is_side(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIDE


def is_size(value: object) -> bool:
    return isinstance(value, list) and [*map(is_side, value)] == [True] * 2


def is_colour(value: object) -> bool:
    return (
        isinstance(value, list)
        and [type(v) in (int, float) and abs(v) <= 1e4 for v in value]
        == [True] * 3
    )


def is_interpolation(value: object) -> bool:
    return isinstance(value, str) and value in INTERPOLATIONS


def or_none(allowed: tuple[Callable, str]) -> tuple[Callable, str]:
    fits, words = allowed
    return lambda v: v is None or fits(v), f'{words}, or null'


SIDE = is_side, f'a whole number from 1 to {MAX_SIDE}'
SIZE = is_size, f'[height, width], whole numbers from 1 to {MAX_SIDE}'
COLOUR = is_colour, '[red, green, blue], numbers'
FLAG = is_flag, 'true or false'
INTERPOLATION = is_interpolation, f'one of {", ".join(INTERPOLATIONS)}'
ARGUMENTS = dict(
    resize=dict(size=SIZE, keep_ratio=FLAG, interpolation=INTERPOLATION),
    resize_short_edge=dict(size=SIDE, interpolation=INTERPOLATION),
    center_crop=dict(size=SIZE),
    grey={},
    pad=dict(size=or_none(SIZE), divisor=or_none(SIDE), value=COLOUR),
)


def check_steps(steps: list) -> None:
    """Refuse steps that :func:`preprocess` cannot take.

    Raises:
        ValueError: It names the step and the argument.
    """
    for i, step in enumerate(steps):
        place = f'preprocess[{i}]'
        op = step.get('op') if isinstance(step, dict) else None
        if not isinstance(op, str) or op not in STEPS:
            raise ValueError(
                f'{place} must be an object with an "op" of '
                f'{", ".join(STEPS)}, got {step!r:.80}'
            )
        place += f' ({op})'
        arguments = {name: step[name] for name in step if name != 'op'}
        allowed = ARGUMENTS[op]
        for name in arguments:
            if name not in allowed:
                raise ValueError(
                    f'{place} has {name!r:.80}, it takes '
                    f'{", ".join(allowed) or "nothing"}'
                )
        try:
            inspect.signature(STEPS[op]).bind(None, **arguments)
        except TypeError as error:
            raise ValueError(f'{place}: {error}') from None
        for name, value in arguments.items():
            fits, words = allowed[name]
            if not fits(value):
                raise ValueError(
                    f'{place}: {name} must be {words}, got {value!r:.80}'
                )


def step_resize(p, size, keep_ratio=False, interpolation='bilinear') -> None:
    height, width = p.pixels.shape[:2]
    if keep_ratio:
        # As OpenMMLab does: the long side of the size is for the long side of
        # the image, whichever that is.
        ratio = min(
            max(size) / max(height, width), min(size) / min(height, width)
        )
        # Of a long and thin image one pixel remains.
        size = [max(1, int(side * ratio + 0.5)) for side in (height, width)]
    if size[0] * size[1] > MAX_PIXELS:  # of a long and thin one
        raise InputError(
            f'preprocessing would make {size[0]} x {size[1]} px of it, more '
            f'than {MAX_PIXELS} px'
        )
    p.pixels = resize(p.pixels, size, interpolation)
    change = np.array([size[1] / width, size[0] / height])
    p.scale, p.offset = p.scale * change, p.offset * change


def step_resize_short_edge(p, size, interpolation='bilinear') -> None:
    height, width = p.pixels.shape[:2]
    if width < height:
        new = (int(size * height / width), size)
    else:
        new = (size, int(size * width / height))
    step_resize(p, new, interpolation=interpolation)


def step_center_crop(p, size) -> None:
    top, left = (
        max(0, round((have - want) / 2))
        for have, want in zip(p.pixels.shape[:2], size, strict=True)
    )
    p.pixels = p.pixels[top : top + size[0], left : left + size[1]]
    p.offset = p.offset + (left, top)


def step_grey(p) -> None:
    # The plain mean of the channels, cut off, as mmcv.RandomGrayscale does.
    mean = (np.full(3, 1 / 3) * p.pixels[..., ::-1]).sum(axis=2)
    p.pixels = np.repeat(mean.astype(np.uint8)[..., None], 3, axis=2)


def step_pad(p, size=None, divisor=None, value=(0, 0, 0)) -> None:
    have = p.pixels.shape[:2]
    height, width = size or have
    if divisor:
        height, width = (-(-n // divisor) * divisor for n in (height, width))
    if have[0] > height or have[1] > width:
        raise InputError(
            f'preprocessing makes {have[0]} x {have[1]} px of it, more than '
            f'the {height} x {width} px that the model takes'
        )
    # Floats: the filling is the mean of the training data, to the fraction.
    padded = np.empty((height, width, 3), np.float32)
    padded[:] = value
    padded[: have[0], : have[1]] = p.pixels
    p.pixels = padded


STEPS = dict(
    resize=step_resize,
    resize_short_edge=step_resize_short_edge,
    center_crop=step_center_crop,
    grey=step_grey,
    pad=step_pad,
)


# --------------------------------------------- from outputs to an own result


def detect(model, outputs, image, prepared, args) -> dict:
    """Boxes in px of the original image, by descending score."""
    height, width = image.shape[:2]
    back = (outputs['boxes'].reshape(-1, 2, 2) + prepared.offset) / (
        prepared.scale
    )
    boxes = back.clip(0, (width, height)).reshape(-1, 4)
    found = [
        dict(label=int(k), name=name_of(model, k), score=float(s), box=b)
        for b, s, k in zip(
            boxes.tolist(), outputs['scores'], outputs['labels'], strict=True
        )
        if s >= args.score_thr
    ]
    return dict(detections=sorted(found, key=lambda d: -d['score']))


def segment(model, outputs, image, prepared, args) -> dict:
    """Class of every pixel of the original image, (height, width)."""
    if prepared.offset.any():
        raise InputError('the label map of a cropped image is unknown')
    # Without the padding.
    width, height = np.rint(prepared.scale * image.shape[1::-1]).astype(int)
    logits = outputs['logits'][0, :, :height, :width]
    if len(logits) == 1:  # a single class: its pixels, or none
        logits = np.concatenate([np.zeros_like(logits), logits])
    # Classes that win nowhere at this size are not enlarged with the others.
    present = np.unique(logits.argmax(axis=0))
    labels = np.zeros(image.shape[:2], np.uint8 if len(logits) < 256 else int)
    best = np.full(image.shape[:2], -np.inf, np.float32)
    for k in present:
        score = resize(logits[k][..., None], image.shape[:2], 'bilinear')
        better = score[..., 0] > best
        best[better], labels[better] = score[..., 0][better], k
    kinds, counts = np.unique(labels, return_counts=True)
    shares = [
        dict(label=int(k), name=name_of(model, k), share=n / labels.size)
        for k, n in zip(kinds, counts.tolist(), strict=True)
    ]
    shares.sort(key=lambda s: -s['share'])
    return dict(segments=shares, label_map=labels)


def classify(model, outputs, image, prepared, args) -> dict:
    """The best classes, by descending score."""
    scores = outputs['scores'][0]
    best = np.argsort(-scores, kind='stable')[: args.top]
    return dict(
        top=[
            dict(label=int(k), name=name_of(model, k), score=float(scores[k]))
            for k in best
        ]
    )


def name_of(model: Model, label: int) -> str:
    known = label < len(model.classes)
    return model.classes[label] if known else f'class {label}'


# --------------------------------------------------------------- the picture


def colour(label: int) -> tuple[int, int, int]:
    """Neighbouring labels are far apart on the circle of hues."""
    hue = (label * 0.618034) % 1
    rgb = colorsys.hsv_to_rgb(hue, 0.85, (0.95, 0.75)[label % 2])
    return tuple(int(255 * c) for c in rgb)


def write(draw, at, text, font, fill) -> None:
    """Text on a filled box whose upper left corner is ``at``."""
    box = draw.textbbox(at, text, font=font, anchor='lt')
    draw.rectangle((*at, box[2] + 3, box[3] + 3), fill=fill)
    draw.text((at[0] + 2, at[1] + 2), text, 'white', font, anchor='lt')


def draw_detections(picture, result, font) -> Image.Image:
    draw = ImageDraw.Draw(picture)
    line = max(1, round(max(picture.size) / 400))
    for found in reversed(result['detections']):  # the surest lie on top
        x1, y1, x2, y2 = found['box']
        fill = colour(found['label'])
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), None, fill, line)
        text = f'{found["name"]} {found["score"]:.2f}'
        write(draw, (x1, max(0, y1 - font.size - 3)), text, font, fill)
    return picture


def draw_segments(picture, result, font) -> Image.Image:
    labels = result['label_map']
    table = np.array([colour(k) for k in range(labels.max() + 1)], np.uint8)
    overlay = Image.fromarray(table[labels])
    picture = Image.blend(picture, overlay, 0.5)
    draw = ImageDraw.Draw(picture)
    for row, part in enumerate(result['segments']):
        text = f'{part["name"]} {part["share"]:.1%}'
        at = (4, 4 + row * (font.size + 6))
        write(draw, at, text, font, colour(part['label']))
    return picture


def draw_classes(picture, result, font) -> Image.Image:
    """The picture with a bar of text below."""
    lines = [f'{c["score"]:.3f} {c["name"]}' for c in result['top']]
    step = font.size + 4
    width = max(
        picture.width, *(round(font.getlength(t)) + 8 for t in lines), 0
    )
    height = picture.height + len(lines) * step + 4
    canvas = Image.new('RGB', (width, height), (32, 32, 32))
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for row, text in enumerate(lines):
        draw.text((4, picture.height + 2 + row * step), text, 'white', font)
    return canvas


HANDLERS = dict(
    detection=(detect, draw_detections),
    segmentation=(segment, draw_segments),
    classification=(classify, draw_classes),
)


# ------------------------------------------------------------------ the rest


def predict(model: Model, path: Path, args, folder: Path) -> dict:
    """Predict for one image, and write its pictures into ``folder``."""
    interpret, draw = HANDLERS[model.task]
    image = read_image(path)
    try:
        start = time.perf_counter()
        prepared = preprocess(image, model.steps)
        batch = model.batch(prepared.pixels)
        middle = time.perf_counter()
        outputs = model.run(batch)
        end = time.perf_counter()
        result = interpret(model, outputs, image, prepared, args)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    except MemoryError as error:
        height, width = image.shape[:2]
        raise InputError(
            f'{path}: {height} x {width} px do not fit into memory'
        ) from error
    font = ImageFont.load_default(max(10, min(image.shape[:2]) // 28))
    picture = draw(Image.fromarray(image), result, font)
    name = picture_name(path)
    picture.save(folder / name, quality=95)
    label_map = result.pop('label_map', None)
    if label_map is not None:
        result['label_map'] = f'{path.stem}_labels.png'
        small = label_map.astype(np.uint8 if label_map.max() < 256 else 'u2')
        Image.fromarray(small).save(folder / result['label_map'])
    took = dict(
        preprocess=1e3 * (middle - start), network=1e3 * (end - middle)
    )
    print(
        f'{clean(str(path))}: {summary(result)} ({took["network"]:.1f} ms, '
        f'preprocessing {took["preprocess"]:.1f} ms)'
    )
    size = dict(width=image.shape[1], height=image.shape[0])
    return dict(file=str(path), picture=name, **size, ms=took, **result)


def summary(result: dict) -> str:
    """What was found, in a few words."""
    if 'detections' in result:
        found = [f'{d["name"]} {d["score"]:.2f}' for d in result['detections']]
        more = ', ...' if len(found) > 3 else ''
        return f'{len(found)} found: {", ".join(found[:3])}{more}'
    if 'segments' in result:
        parts = result['segments'][:3]
        return ', '.join(f'{s["name"]} {s["share"]:.1%}' for s in parts)
    return ', '.join(f'{c["name"]} {c["score"]:.3f}' for c in result['top'])


def picture_name(path: Path) -> str:
    """JPEG stays JPEG, everything else becomes PNG."""
    if path.suffix.lower() in ('.jpg', '.jpeg'):
        return path.name
    return f'{path.stem}.png'


def check_out(out: Path, images: list[Path]) -> None:
    """Refuse what would overwrite an image, or one picture by another."""
    if out.exists() and not out.is_dir():
        raise InputError(f'--out must be a folder, got the file {out}')
    taken = {}
    for path in images:
        target = (out / picture_name(path)).resolve()
        if target in taken:
            raise InputError(
                f'{taken[target]} and {path} would both become {target.name}'
            )
        taken[target] = path
    for path in images:
        if path.resolve() in taken:
            raise InputError(f'the pictures in {out} would overwrite {path}')


def predict_all(args: argparse.Namespace) -> None:
    """All images, or in case of an error nothing in the folder."""
    model = load_model(args.model, args.threads)
    check_outputs(model)
    images = find_images(args.images)
    check_out(args.out, images)
    made = not args.out.exists()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=args.out, prefix='.new-') as new:
            results = [predict(model, i, args, Path(new)) for i in images]
            content = dict(
                model=str(model.path),
                task=model.task,
                classes=model.classes,
                images=results,
            )
            text = json.dumps(
                content, indent=1, ensure_ascii=False, allow_nan=False
            )
            # What of a file's name is no character becomes an escape of JSON.
            (Path(new) / 'predictions.json').write_text(
                text + '\n', 'utf-8', errors='backslashreplace'
            )
            for file in Path(new).iterdir():
                os.replace(file, args.out / file.name)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):  # it may have files by now
                args.out.rmdir()
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model', type=Path, help='ONNX file')
    parser.add_argument(
        'images', nargs='+', type=Path, help='images, or folders of images'
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('predictions'),
        help='folder for the pictures and predictions.json (predictions)',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='boxes below this score are left out (0.3)',
    )
    parser.add_argument(
        '--top', type=int, default=5, help='classes told of an image (5)'
    )
    parser.add_argument(
        '--threads', type=int, default=0, help='default: one for each core'
    )
    args = parser.parse_args()
    if args.top < 1 or args.threads < 0:
        parser.error('--top must be 1 or more, --threads 0 or more')
    # Of damaged files Pillow logs what the one error says; without a handler
    # that would be printed too.
    logging.getLogger('PIL').addHandler(logging.NullHandler())
    try:
        predict_all(args)
    # The other class: a folder that cannot be written, a full disk.
    except (InputError, OSError) as error:
        print(f'error: {clean(str(error))}', file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == '__main__':
    main()
