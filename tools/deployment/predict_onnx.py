"""Predict with an ONNX file: boxes, a label map or a class for each image.

Inputs are images, folders with their sub-folders, patterns ('photos/*.jpg'),
videos, and webcams (webcam:0, or 0), which Ctrl+C ends. Needs onnxruntime or
openvino, NumPy, OpenCV and Pillow, nothing else: take this one file into a
product. The metadata of the ONNX file say what the model expects. Images are
RGB, uint8, (height, width, 3); boxes are x1, y1, x2, y2.
"""

import argparse
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from glob import glob
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

# Of all that Pillow opens: for some of the others it starts programs.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')
SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpg', '.webm', '.wmv')
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'area')  # as OpenCV
MAX_PIXELS = 2**28  # of a preprocessed image: 3 GiB in floats
# Of Linux, macOS and Windows.
FONT_FOLDERS = (
    *('/usr/share/fonts', '/usr/local/share/fonts', '~/.local/share/fonts'),
    *('~/.fonts', '/System/Library/Fonts', '/Library/Fonts'),
    *('~/Library/Fonts', 'C:/Windows/Fonts'),
)
FONT_STYLES = 'bold|italic|oblique|light|thin|black|mono|serif|lastresort'


class InputError(Exception):
    """A model or an image that cannot be used; the message says why."""


def clean(text: str) -> str:
    """Replace characters that do things to a terminal, or are none."""
    return re.sub('[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]', '?', text)


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn any error of the libraries into one line that tells where it is."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # they have no common class
        text = ' '.join(str(error).split())[:300]
        text = f'{where}: {type(error).__name__}: {text}'
        if isinstance(error, ModuleNotFoundError):
            text = f'{error.name} is not installed: pip install {error.name}'
        raise InputError(text) from error


@dataclass
class Model:
    """What runs a file, and what the file says of itself."""

    path: Path
    task: str
    classes: list[str]
    steps: list[dict]
    names: list[str]  # of the outputs
    compute: Callable[[np.ndarray], Sequence[np.ndarray]]
    head: dict  # of a PicoDet

    def read(self, path: Path) -> np.ndarray:
        """Make the input of the network of an image file, (1, 3, H, W)."""
        prepared = preprocess(read_image(path), self.steps)
        return cv2.dnn.blobFromImage(prepared.pixels)

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Compute the outputs by name; those of a detector after NMS."""
        arrays = self.compute(batch)
        if not all(np.isfinite(array).all() for array in arrays):
            raise InputError(f'{self.path} gives values that are not finite')
        outputs = dict(zip(self.names, arrays, strict=True))
        if not self.head or 'labels' in outputs:
            return outputs
        if 'boxes' in outputs:
            boxes, scores = outputs['boxes'][0], outputs['scores'][0]
        else:
            boxes, scores = decode(outputs, self.head['strides'])
            boxes = boxes.clip(0, 2 * batch.shape[:1:-1])
        return suppress(boxes, scores, self.head)

    def part(self, label: int, **values) -> dict:
        """Describe a part of a result; a class without a name has a number."""
        name = dict(enumerate(self.classes)).get(label) or f'class {label}'
        return dict(label=label, name=name, **values)


def decode(outputs: dict[str, np.ndarray], strides: list[int]) -> tuple:
    """Turn the maps of a PicoDet into boxes (n, 4) and scores (n, C)."""
    boxes, scores = [], []
    for s in strides:
        score, bins = outputs[f'scores_{s}'][0], outputs[f'distances_{s}'][0]
        bins = bins.reshape(4, -1, score[0].size)
        shares = np.exp(bins - bins.max(axis=1, keepdims=True))
        steps = np.arange(bins.shape[1])[:, None]
        sides = s * (shares * steps).sum(axis=1) / shares.sum(axis=1)
        cells = np.indices(score.shape[1:])[::-1].reshape(2, -1)
        points = s * (cells + 0.5)
        boxes.append(np.concatenate([points - sides[:2], points + sides[2:]]))
        scores.append(score.reshape(len(score), -1))
    return np.hstack(boxes).T, np.hstack(scores).T


def suppress(boxes: np.ndarray, scores: np.ndarray, head: dict) -> dict:
    """Choose detections among boxes (n, 4), scores (n, C) as the NMS does."""
    best = np.argsort(-scores.max(axis=1), kind='stable')[:1000]
    row, label = np.nonzero(scores[best] > head['score_thr'])
    boxes, scores = boxes[best[row]], scores[best[row], label]
    sizes = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    threshold, limit = head['iou_threshold'], head['max_per_img']
    kept = cv2.dnn.NMSBoxesBatched(sizes, scores, label, 0, threshold)
    kept = np.array(kept, int)
    kept = kept[np.argsort(-scores[kept], kind='stable')]
    kept = kept[: limit if limit > 0 else None]
    return dict(boxes=boxes[kept], scores=scores[kept], labels=label[kept])


def open_onnxruntime(content: bytes, threads: int) -> tuple:
    """Give what computes, types of inputs, names of outputs, metadata."""
    import onnxruntime as ort

    # Before 1.24 it opens any file of the machine that a tensor names.
    version = tuple(map(int, ort.__version__.split('.')[:2]))
    if version < (1, 24) and b'location' in content:
        raise ValueError('it may have data in other files')
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # its errors are raised as well
    # It would take some files for those of a format of its own, and look for
    # tensors in other files, which no file has in this folder.
    add = options.add_session_config_entry
    add('session.load_model_format', 'ONNX')
    add('session.model_external_initializers_file_folder_path', os.devnull)
    providers = ['CPUExecutionProvider']
    session = ort.InferenceSession(content, options, providers=providers)
    inputs = session.get_inputs()
    return (
        lambda batch: session.run(None, {inputs[0].name: batch}),
        [port.type for port in inputs],
        [port.name for port in session.get_outputs()],
        session.get_modelmeta().custom_metadata_map,
    )


def open_openvino(content: bytes, threads: int, precision='f32') -> tuple:
    """Give the same as :func:`open_onnxruntime`."""
    import openvino as ov

    # It opens any file of the machine that a tensor names.
    if b'location' in content:
        raise ValueError('it may have data in other files')
    core = ov.Core()
    network = core.read_model(content)
    options = dict(INFERENCE_PRECISION_HINT=precision)
    options['INFERENCE_NUM_THREADS'] = threads
    compiled = core.compile_model(network, 'CPU', options)
    # One output may have several names.
    names = [name for port in compiled.outputs for name in port.names]

    def compute(batch: np.ndarray) -> list[np.ndarray]:
        found = compiled(batch)
        return [found[name] for name in names]

    types = [port.element_type.to_string() for port in network.inputs]
    meta = network.get_rt_info(['framework']).value
    return compute, types, names, {k: str(v) for k, v in meta.items()}


RUNTIMES = {'onnx': open_onnxruntime, 'openvino': open_openvino}
RUNTIMES['openvino-bf16'] = partial(open_openvino, precision='bf16')


def load_model(path: Path, threads: int = 0, runtime: str = 'onnx') -> Model:
    """Open an ONNX file with its metadata and all its data, or say why not."""
    if not path.is_file():
        raise InputError(f'model not found: {path}')
    with explained(f'{path} is no usable ONNX file'):
        content = path.read_bytes()
        compute, types, names, meta = RUNTIMES[runtime](content, threads)
    task, keys = meta.get('task'), ('classes', 'preprocess', 'head')
    try:
        values = [json.loads(meta.get(key, '{}')) for key in keys]
    except (RecursionError, ValueError):
        values = []
    if (
        task not in TASKS
        or types not in (['tensor(float)'], ['f32'])
        or [*map(type, values)] != [list, list, dict]
    ):
        raise InputError(
            f'{path} must have in its metadata a task of {", ".join(TASKS)} '
            'and the JSON lists classes and preprocess, a dict head if it has '
            f'one, and one input of tensor(float), got {task!r} and {types}: '
            'export it with export_onnx.py'
        )
    classes, steps, head = values
    classes = [clean(str(name)[:1000]) for name in classes]
    return Model(path, task, classes, steps, names, compute, head)


def find_images(names: Iterable[str | Path]) -> list[Path]:
    """List files that are named or matched, and all images of folders."""
    found = []
    for name in map(str, names):
        named, inside = os.path.exists(name), []
        for path in map(Path, [name] if named else glob(name, recursive=True)):
            if path.is_dir():
                files = path.rglob('*')
                inside += [p for p in files if p.suffix.lower() in SUFFIXES]
            elif named or path.suffix.lower() in SUFFIXES + VIDEOS:
                inside.append(path)
        if not inside:
            what = 'no image in the folder' if named else 'image not found:'
            raise InputError(f'{what} {name}')
        found += sorted(set(inside))
    return found


def read_image(path: Path) -> np.ndarray:
    """Read any image as 8-bit RGB, upright, without its transparency."""
    with explained(f'cannot read {path}'):
        with Image.open(path, formats=FORMATS) as opened:
            image = ImageOps.exif_transpose(opened)
        if image.mode == 'F':
            raise ValueError('its pixels are floats')
        if image.mode.startswith('I'):  # 16 bits: keep the upper eight
            levels = np.asarray(image).astype(np.int64) >> 8
            image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
        image.info.pop('transparency', None)
        return np.asarray(image.convert('RGB'))


def require_memory(size: Sequence[int]) -> None:
    """Refuse what the system would promise, and then end the process for."""
    if np.prod(size, dtype=float) > MAX_PIXELS:
        raise ValueError(f'{size} px are more than {MAX_PIXELS}')


@dataclass
class Prepared:
    """An image; its point p was at ``(p + offset) / scale``, x and y.

    The metadata list what comes after ``step_`` in the names of methods.
    """

    pixels: np.ndarray
    scale: np.ndarray
    offset: np.ndarray

    def step_resize(self, size, keep_ratio=False, interpolation='bilinear'):
        have = np.array(self.pixels.shape[:2])
        if isinstance(size, int):  # of the shorter side
            size = (size * have / have.min()).astype(int)
        elif keep_ratio:
            # As OpenMMLab does: the long side of the size is for the long
            # side of the image, whichever that is.
            ratio = (np.sort(size) / np.sort(have)).min()
            # Of a long and thin image one pixel remains.
            size = (have * ratio + 0.5).astype(int).clip(1)
        require_memory(size)
        kind = INTERPOLATIONS.index(interpolation)
        self.pixels = cv2.resize(self.pixels, size[::-1], interpolation=kind)
        change = (size / have)[::-1]
        self.scale, self.offset = self.scale * change, self.offset * change

    step_resize_short_edge = step_resize

    def step_center_crop(self, size):
        spare = np.subtract(self.pixels.shape[:2], size) / 2
        top, left = spare.round().astype(int).clip(0)
        self.pixels = self.pixels[top : top + size[0], left : left + size[1]]
        self.offset = self.offset + (left, top)

    def step_grey(self):
        # The plain mean of the channels, cut off: mmcv.RandomGrayscale's.
        mean = (np.full(3, 1 / 3) * self.pixels[..., ::-1]).sum(axis=2)
        self.pixels = np.repeat(mean.astype(np.uint8)[..., None], 3, axis=2)

    def step_pad(self, size=None, divisor=None, value=(0, 0, 0)):
        height, width = self.pixels.shape[:2]
        size = np.array(size or (height, width))
        if divisor:
            size = -(-size // divisor) * divisor
        require_memory(size)
        # Floats: the filling is the training data's mean, to the fraction.
        padded = np.empty((*size, 3), np.float32)
        padded[:] = value
        # Fails if it is larger than what the model takes.
        padded[:height, :width] = self.pixels
        self.pixels = padded

    def step_normalise(self, mean, std, bgr=False):
        pixels = self.pixels[..., ::-1] if bgr else self.pixels
        self.pixels = (pixels - np.float32(mean)) / np.float32(std)


def preprocess(image: np.ndarray, steps: list[dict]) -> Prepared:
    """Take an image through the steps that the metadata lists."""
    prepared = Prepared(image, np.ones(2), np.zeros(2))
    for step in steps:
        with explained(f'step {step!r:.200} of preprocess'):
            arguments = dict(step)
            name = f'step_{arguments.pop("op")}'
            getattr(prepared, name)(**arguments)
    return prepared


def detect(model, outputs, image, prepared, args) -> dict:
    """List boxes in px of the original image, by descending score."""
    corners = outputs['boxes'].reshape(-1, 2, 2) + prepared.offset
    corners = (corners / prepared.scale).clip(0, image.shape[1::-1])
    arrays = outputs['labels'], outputs['scores'], corners.reshape(-1, 4)
    best = np.argsort(-outputs['scores'], kind='stable')
    rows = zip(*(array[best].tolist() for array in arrays), strict=True)
    parts = [model.part(k, score=score, box=box) for k, score, box in rows]
    return dict(detections=[p for p in parts if p['score'] >= args.score_thr])


def segment(model, outputs, image, prepared, args) -> dict:
    """Give every pixel of the original image its class, (height, width)."""
    logits = outputs['logits'][0]
    if prepared.offset.any() or logits.shape[1:] != prepared.pixels.shape[:2]:
        why = f'logits {logits.shape} are of a cropped image, or another size'
        raise InputError(why)
    # Without the padding.
    width, height = np.rint(prepared.scale * image.shape[1::-1]).astype(int)
    logits = logits[:, :height, :width]
    labels = np.zeros(image.shape[:2], np.uint8 if len(logits) < 256 else 'u2')
    best = np.full(image.shape[:2], -np.inf, np.float32)
    # Classes that win nowhere at this size are not enlarged with the others.
    for k in np.unique(logits.argmax(axis=0)):
        score = cv2.resize(logits[k], image.shape[1::-1])
        better = score > best
        best[better], labels[better] = score[better], k
    shares = np.bincount(labels.ravel()) / labels.size
    best = np.argsort(-shares, kind='stable').tolist()
    parts = [model.part(k, share=float(shares[k])) for k in best if shares[k]]
    return dict(segments=parts, label_map=labels)


def classify(model, outputs, image, prepared, args) -> dict:
    """List the best classes, by descending score."""
    (scores,) = outputs['scores']
    best = np.argsort(-scores, kind='stable')[: args.top].tolist()
    return dict(top=[model.part(k, score=float(scores[k])) for k in best])


# By task: what reads the outputs, and which it needs.
TASKS = dict(
    detection=(detect, {'boxes', 'scores', 'labels'}),
    segmentation=(segment, {'logits'}),
    classification=(classify, {'scores'}),
)


def find_fonts(names: Iterable[str], given: Path | None) -> dict:
    """Find for each name, and none, the first font with all its characters.

    Of ``--font``, Pillow's own, which has no accents, and the system's.
    """
    folders = map(Path, map(os.path.expanduser, FONT_FOLDERS))
    files = [f for folder in folders for f in folder.rglob('*.[ot]t[cf]')]
    files.sort(key=lambda f: (bool(re.search(FONT_STYLES, f.name.lower())), f))
    own, found, missing = ImageFont.load_default(20), {}, {'', *names}
    for path in [*filter(None, [given]), None, *files]:
        if not missing:
            break
        try:
            font = ImageFont.truetype(path, 20) if path else own
            none = bytes(font.getmask('\U0010fffd'))
        except OSError as error:
            if path == given:
                raise InputError(f'{path} is no font') from error
            continue
        for name in [*missing]:
            wanted = set(f'{name}0.') - {' '}
            if all(bytes(font.getmask(c)) != none for c in wanted):
                found[name] = font
                missing.remove(name)
    return found


def colour(label: int) -> tuple[int, int, int]:
    """Choose a colour; those of neighbouring labels are far apart."""
    hue, value = label * 0.618034 % 1 * 360, 75 if label % 2 else 95
    return ImageColor.getrgb(f'hsv({hue:.2f}, 85%, {value}%)')


def text_of(part: dict, named: bool = True) -> str:
    """Tell a part of a result."""
    name = part['name'] if named else f'class {part["label"]}'
    return f'{name} {part.get("score", part.get("share")):.2f}'


def draw(image: np.ndarray, result: dict, fonts: dict) -> Image.Image:
    """Draw boxes or a label map on a picture, or write classes below it.

    A name that is not among those of the fonts becomes a number.
    """
    picture = Image.fromarray(image)
    size = max(10, min(image.shape[:2]) // 28)
    step, top = size + 6, 4
    parts, *_ = result.values()
    known = [part['name'] if part['name'] in fonts else '' for part in parts]
    faces = {name: fonts[name].font_variant(size=size) for name in {*known}}
    texts = [*map(text_of, parts, map(bool, known))]
    if 'label_map' in result:
        labels = result['label_map']
        table = np.array([*map(colour, range(labels.max() + 1))], np.uint8)
        picture = Image.blend(picture, Image.fromarray(table[labels]), 0.5)
    if 'top' in result:
        top = picture.height + 4
        rows = zip(known, texts, strict=True)
        ends = [int(faces[name].getlength(text)) + step for name, text in rows]
        width = max([picture.width, *ends])
        picture = picture.crop((0, 0, width, top + step * len(texts)))
    pen = ImageDraw.Draw(picture)
    line = max(1, round(max(picture.size) / 400))
    # The surest boxes lie on top.
    for row in reversed(range(len(parts))):
        part, text, font = parts[row], texts[row], faces[known[row]]
        fill, at = colour(part['label']), (4, top + row * step)
        if 'box' in part:
            x1, y1, x2, y2 = part['box']
            pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), None, fill, line)
            at = (x1, max(0, y1 - size - 3))
        box = pen.textbbox(at, text, font=font, anchor='lt')
        pen.rectangle((*at, box[2] + 3, box[3] + 3), fill=fill)
        pen.text((at[0] + 2, at[1] + 2), text, 'white', font, anchor='lt')
    return picture


def predict(model: Model, image: np.ndarray, labels: Path, args) -> tuple:
    """Predict for an image; gives its picture and what was found.

    A label map is written to ``args.out / labels``.
    """
    with explained(str(model.path)):
        start = time.perf_counter()
        prepared = preprocess(image, model.steps)
        batch = cv2.dnn.blobFromImage(prepared.pixels)
        middle = time.perf_counter()
        outputs = model.run(batch)
        end = time.perf_counter()
        result = TASKS[model.task][0](model, outputs, image, prepared, args)
        picture = draw(image, result, args.fonts)
    if 'label_map' in result:
        (args.out / labels).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(result['label_map']).save(args.out / labels)
        result['label_map'] = labels.as_posix()
    height, width = image.shape[:2]
    ms = dict(preprocess=1e3 * (middle - start), network=1e3 * (end - middle))
    return picture, result | dict(width=width, height=height, ms=ms)


def predict_image(model, path, target, labels, args) -> Iterator[dict]:
    """Predict for an image file; write its picture."""
    picture, result = predict(model, read_image(path), labels, args)
    picture.save(target, quality=95)
    (parts, *_), ms = result.values(), result['ms']
    best = ', '.join(map(text_of, parts[:3]))
    times = f'{ms["network"]:.1f} ms, preprocessing {ms["preprocess"]:.1f} ms'
    print(f'{clean(str(path))}: {len(parts)} found: {best} ({times})')
    yield result


def predict_video(model, path, target, labels, args) -> Iterator[dict]:
    """Predict for all frames of a video or a webcam; write a drawn video."""
    webcam = isinstance(path, int)
    capture = cv2.VideoCapture(path if webcam else str(path))
    rate = capture.get(cv2.CAP_PROP_FPS)
    total = 0 if webcam else capture.get(cv2.CAP_PROP_FRAME_COUNT)
    writer, done = cv2.VideoWriter(), 0
    try:
        while (frame := capture.read()[1]) is not None:
            image = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            file = labels / f'{done:06}.png'
            picture, result = predict(model, image, file, args)
            if not done:
                size = picture.size
                code = cv2.VideoWriter_fourcc(*'mp4v')
                rate = rate if 0 < rate < 1000 else 25
                if not writer.open(str(target), code, rate, size):
                    raise InputError(f'{target} cannot be written')
            # Names of classes below it may be longer than at first.
            writer.write(np.asarray(picture.crop((0, 0, *size)))[..., ::-1])
            yield dict(frame=done) | result
            done += 1
    except KeyboardInterrupt:
        if not webcam:
            raise
    finally:
        writer.release()
    print(f'{clean(str(path))}: {done} frames')
    # The number that the file has may be an estimate.
    if not done or done < 0.95 * total:
        raise InputError(f'{done} of {total:.0f} frames can be read')


def find_sources(names: list[str], out: Path) -> Iterator[tuple]:
    """Find files and webcams, with the names of their results.

    Folders below the common one of all are kept.
    """
    full = {}
    for name in names:
        number = name.removeprefix('webcam:')
        if number.isdecimal() and not os.path.exists(name):
            full[os.path.abspath(f'webcam{number}.mp4')] = int(number)
        else:
            full |= {os.path.abspath(p): p for p in find_images([name])}
    root = os.path.commonpath(map(os.path.dirname, full))
    originals, taken = set(map(os.path.realpath, full)), set()
    for path, source in full.items():
        plain, suffix = os.path.splitext(os.path.relpath(path, root))
        video = suffix.lower() in VIDEOS
        if suffix.lower() not in ('.jpg', '.jpeg'):
            suffix = '.mp4' if video else '.png'
        end = '_labels' if video else '_labels.png'
        # Beside 'a.jpg', 'a.png' becomes 'a_2.png'.
        tries = (plain if i == 1 else f'{plain}_{i}' for i in count(1))
        pairs = ((name + suffix, name + end) for name in tries)
        pair = next(p for p in pairs if not {n.lower() for n in p} & taken)
        taken |= {name.lower() for name in pair}
        for name in pair:
            if os.path.realpath(out / name) in originals:
                raise InputError(f'{out / name} would overwrite an input')
        yield source, *map(Path, pair)


def predict_all(args: argparse.Namespace) -> int:
    """Predict for all inputs; returns how many could not be used."""
    model = load_model(args.model, args.threads, args.runtime)
    lacking = TASKS[model.task][1] - {*model.names}
    if lacking and not model.head:
        raise InputError(
            f'{model.path} has no output {", ".join(sorted(lacking))}: export '
            'it with export_onnx.py, a detector --with-nms'
        )
    sources = [*find_sources(args.inputs, args.out)]
    args.fonts = find_fonts(model.classes, args.font)
    without = [name for name in model.classes if name not in args.fonts]
    if without:
        told = ', '.join(without[:5])
        print(f'no font has {told}: try --font FILE', file=sys.stderr)
    args.out.mkdir(parents=True, exist_ok=True)
    results, failed = [], 0
    for path, picture, labels in sources:
        about = dict(file=str(path), picture=picture.as_posix())
        target = args.out / picture
        target.parent.mkdir(parents=True, exist_ok=True)
        function = predict_video if target.suffix == '.mp4' else predict_image
        try:
            for result in function(model, path, target, labels, args):
                results.append(about | result)
        except InputError as error:
            text = str(error)
            if about['file'] not in text:
                text = f'{path}: {text}'
            print(f'error: {clean(text)}', file=sys.stderr)
            failed += 1
    about = dict(model=str(model.path), task=model.task, classes=model.classes)
    about['images'] = results
    text = json.dumps(about, indent=1, ensure_ascii=False) + '\n'
    # What of a file's name is no character becomes an escape of JSON.
    path = args.out / 'predictions.json'
    path.write_text(text, 'utf-8', errors='backslashreplace')
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('model', type=Path, help='ONNX file')
    inputs = 'images, folders, patterns, videos, webcam:0'
    add('inputs', nargs='+', metavar='INPUT', help=inputs)
    out = 'folder for the pictures and predictions.json (predictions)'
    add('--out', type=Path, default=Path('predictions'), help=out)
    score = 'boxes below this score are left out (0.3)'
    add('--score-thr', type=float, default=0.3, help=score)
    add('--top', type=int, default=5, help='classes told of an image (5)')
    add('--threads', type=int, default=0, help='default: one for each core')
    runtime = 'onnx: ONNX Runtime (default); openvino, in float32 or bfloat16'
    add('--runtime', choices=RUNTIMES, default='onnx', help=runtime)
    add('--font', type=Path, help='font file for the names of the classes')
    args = parser.parse_args()
    if args.top < 1 or args.threads < 0:
        wrong = f'got {args.top} and {args.threads}'
        parser.error(f'--top must be 1 or more, --threads 0 or more, {wrong}')
    # Pillow would log what the one error of a damaged file says.
    logging.getLogger('PIL').addHandler(logging.NullHandler())
    try:
        failed = predict_all(args)
    # The other class: a folder that cannot be written, a full disk.
    except (InputError, OSError) as error:
        sys.exit(f'error: {clean(str(error))}')
    if failed:
        sys.exit(f'{failed} of the inputs could not be used')


if __name__ == '__main__':
    main()
