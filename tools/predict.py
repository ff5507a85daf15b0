"""Predict for images, videos and webcams: pictures, and predictions.json.

An input is an image; a folder, whose images are taken with those of its
sub-folders; a pattern such as 'photos/*.jpg' or 'photos/**/*.png'; a video;
or a webcam, as webcam:0 or 0, which Ctrl+C ends. Models are detectors,
segmentors and classifiers of anchorformer_mm, mmdet, mmseg and mmpretrain.

Results are in the folder of --out: pictures/, a label map for each image of a
segmentor in labels/, and predictions.json, which is COCO's of a detector.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from itertools import count
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.files import replacing
from anchorformer_mm.utils.text import listing, printable

if TYPE_CHECKING:
    import numpy as np
    from rich.progress import Progress
    from torch import nn

    from anchorformer_mm.analysis.pictures import Part

IMAGES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpg', '.webm', '.wmv')


def parse_args() -> argparse.Namespace:
    # Imports what was just checked.
    from mmengine.config import DictAction
    from mmengine.device import get_device

    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    own = "config file, or a library's own as mmdet::rtmdet/FILE.py"
    add('config', help=own)
    add('checkpoint', help='checkpoint file')
    add('inputs', nargs='+', metavar='INPUT', help='see above')
    folder = 'folder for the results (predictions)'
    add('--out', type=Path, default=Path('predictions'), help=folder)
    add('--device', default=get_device(), help='default: the GPU, if any')
    score = 'boxes below this score are left out (0.3)'
    add('--score-thr', type=float, default=0.3, help=score)
    add('--top', type=int, default=5, help='classes told of an image (5)')
    add('--font', type=Path, help='font file for the names of the classes')
    window = 'show videos and webcams in a window, too; q closes it'
    add('--show', action='store_true', help=window)
    options = 'overrides of the config, as key=value pairs'
    add('--cfg-options', nargs='+', action=DictAction, help=options)
    args = parser.parse_args()
    if args.top < 1:
        parser.error(f'--top must be 1 or more, got {args.top}')
    screen = os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')
    if args.show and sys.platform == 'linux' and not screen:
        parser.error('--show needs a display')
    return args


@dataclass(frozen=True)
class Source:
    """An image file, a video file, or a webcam by its number.

    ``file_name`` is below the folder that all files are in; ``picture`` and
    ``label_map``, which is a folder of a video, below that of the results.
    """

    path: Path | int
    file_name: str
    picture: str
    label_map: str

    def __str__(self) -> str:
        webcam = isinstance(self.path, int)
        return f'webcam:{self.path}' if webcam else printable(str(self.path))


def find_files(name: str, out: Path) -> Iterator[Path]:
    """Find the files that an input names, without results of earlier runs."""
    exists, out = os.path.exists(name), out.resolve()
    for match in [name] if exists else sorted(glob(name, recursive=True)):
        path = Path(match)
        above = path.resolve() in out.parents
        for file in sorted(path.rglob('*')) if path.is_dir() else []:
            image = file.suffix.lower() in IMAGES and file.name[0] != '.'
            if image and not (above and out in file.resolve().parents):
                yield file
        known = exists or path.suffix.lower() in IMAGES + VIDEOS
        if known and not path.is_dir():
            yield path


def find_sources(inputs: list[str], out: Path) -> tuple[list[Source], str]:
    """Find what the inputs name, each once, and the folder all files are in.

    Raises:
        UsageError: An input names nothing, or would be overwritten.
    """
    files: dict[str, Path | int] = {}
    for name in inputs:
        number = name.removeprefix('webcam:')
        if number.isdecimal() and not os.path.exists(name):
            files[os.path.abspath(f'webcam{number}.mp4')] = int(number)
            continue
        found = {os.path.abspath(file): file for file in find_files(name, out)}
        if not found:
            raise UsageError(f'no such file, or no image in it: {name}')
        files |= found
    root = os.path.commonpath(map(os.path.dirname, files))
    originals, taken, sources = set(map(os.path.realpath, files)), set(), []
    for full, path in files.items():
        file_name = Path(os.path.relpath(full, root)).as_posix()
        plain, suffix = os.path.splitext(file_name)
        # Beside 'a.jpg', 'a.png' becomes 'a_2', wherever case is ignored too.
        tries = (plain if i == 1 else f'{plain}_{i}' for i in count(1))
        name = next(name for name in tries if name.lower() not in taken)
        taken.add(name.lower())
        label_map = f'labels/{name}.png'
        if suffix.lower() in VIDEOS:
            suffix, label_map = '.mp4', f'labels/{name}.mp4'
        elif suffix.lower() not in ('.jpg', '.jpeg'):
            suffix = '.png'
        picture = f'pictures/{name}{suffix}'
        for target in (picture, label_map):
            if os.path.realpath(out / target) in originals:
                raise UsageError(f'{out / target} would be overwritten')
        sources.append(Source(path, file_name, picture, label_map))
    return sources, root


def annotation(part: 'Part') -> dict:
    """Make an annotation in the form of COCO of an object."""
    import numpy as np
    from pycocotools import mask

    found = dict(category_id=part.label + 1, score=part.value, iscrowd=0)
    if part.mask is not None:
        code = mask.encode(np.asfortranarray(part.mask, np.uint8))
        found |= dict(
            bbox=mask.toBbox(code).tolist(),
            area=int(mask.area(code)),
            segmentation=dict(code, counts=code['counts'].decode()),
        )
    if part.box is not None:
        x, y, right, bottom = part.box.tolist()
        w, h = right - x, bottom - y
        found = dict(area=w * h) | found | dict(bbox=[x, y, w, h])
    return found


class Predictor:
    """Predicts, draws and collects what is found."""

    def __init__(self, model: 'nn.Module', args: argparse.Namespace) -> None:
        from anchorformer_mm.analysis.pictures import find_fonts

        self.model, self.args, self.meta = model, args, model.dataset_meta
        names = [str(name) for name in self.meta.get('classes') or ()]
        self.fonts = find_fonts(names, args.font)
        without = [printable(n) for n in names if n not in self.fonts]
        if without:
            print(
                f'warning: no font has all characters of {listing(without)}: '
                'drawn as numbers; give a font file with --font',
                file=sys.stderr,
            )
        self.images, self.annotations, self.found = [], [], Counter()
        self.detects = self.stopped = False

    def predict(
        self, source: Source, image: 'np.ndarray', frame: int | None = None
    ) -> 'np.ndarray':
        """Predict for an image, BGR, or its file; gives its picture, BGR."""
        import mmcv

        from anchorformer_mm import apis
        from anchorformer_mm.analysis import pictures

        single = frame is None
        sample = apis.predict(self.model, source.path if single else image)
        parts = pictures.parts_of(sample, self.args.score_thr, self.args.top)
        names = [pictures.class_name(self.meta, p.label) for p in parts]
        about = dict(id=len(self.images) + 1, file_name=source.file_name)
        about |= {} if single else dict(frame=frame)
        about |= dict(height=image.shape[0], width=image.shape[1])
        about['picture'] = source.picture
        key = 'score'
        if 'pred_instances' in sample:
            self.detects = True
            for part in parts:
                ids = dict(id=len(self.annotations) + 1, image_id=about['id'])
                self.annotations.append(ids | annotation(part))
        elif 'pred_sem_seg' in sample:
            key, path = 'share', source.label_map
            path = path if single else f'{path}/{frame:06}.png'
            labels = sample.pred_sem_seg.data.squeeze(0).numpy()
            kind = 'uint8' if labels.max() < 256 else 'uint16'
            with replacing(self.args.out / path) as temporary:
                mmcv.imwrite(labels.astype(kind), str(temporary))
            about['label_map'] = path
        if 'pred_instances' not in sample:
            about['classes'] = [
                {'label': part.label, 'name': name, key: part.value}
                for part, name in zip(parts, names, strict=True)
            ]
        self.images.append(about)
        self.found.update(names[:1] if 'pred_score' in sample else names)
        image = image[..., ::-1]
        return pictures.draw_parts(image, parts, self.meta, self.fonts)[
            ..., ::-1
        ]

    def predict_image(self, source: Source) -> None:
        """Predict for an image file."""
        import mmcv

        from anchorformer_mm.apis import require_image

        require_image(source.path)
        picture = self.predict(source, mmcv.imread(str(source.path)))
        with replacing(self.args.out / source.picture) as temporary:
            mmcv.imwrite(picture, str(temporary))

    def predict_video(self, source: Source, progress: 'Progress') -> None:
        """Predict for every frame of a video or a webcam.

        Raises:
            UsageError: It cannot be read, or only a part of it.
        """
        import cv2

        webcam = isinstance(source.path, int)
        capture = cv2.VideoCapture(source.path if webcam else str(source.path))
        writer, done = cv2.VideoWriter(), 0
        rate = capture.get(cv2.CAP_PROP_FPS)
        total = 0 if webcam else capture.get(cv2.CAP_PROP_FRAME_COUNT)
        frames = progress.track(
            iter(lambda: capture.read(), (False, None)),
            total=total if total > 0 else None,
            description=str(source),
        )
        with replacing(self.args.out / source.picture) as temporary:
            try:
                for _, frame in frames:
                    picture = self.predict(source, frame, done)
                    if not done:
                        writer.open(
                            str(temporary),
                            cv2.VideoWriter_fourcc(*'mp4v'),
                            rate if 0 < rate < 1000 else 25,
                            picture.shape[1::-1],
                        )
                    writer.write(picture)
                    done += 1
                    if self.args.show:
                        cv2.imshow(str(source), picture)
                        if cv2.waitKey(1) & 0xFF == ord('q'):
                            total = 0
                            break
            except KeyboardInterrupt:
                total, self.stopped = 0, not webcam
            finally:
                capture.release()
                writer.release()
            if not done:
                raise UsageError('no frame of it can be read')
        # The number that the file has may be an estimate.
        if done < 0.95 * total:
            raise UsageError(f'only {done} of {total:.0f} frames can be read')

    def predict_all(self, sources: list[Source]) -> int:
        """Predict for all; gives how many could not be used."""
        from rich.console import Console
        from rich.progress import Progress

        console, failed = Console(stderr=True), 0
        with Progress(console=console, disable=not console.is_terminal) as bar:
            for source in bar.track(sources, description='predicting'):
                try:
                    if source.picture.endswith('.mp4'):
                        self.predict_video(source, bar)
                    else:
                        self.predict_image(source)
                except KeyboardInterrupt:
                    self.stopped = True
                except OSError:
                    # Of the results: a full disk, for example.
                    raise
                except Exception as error:
                    # Whatever a model makes of an odd image, the others go on.
                    text = shorten(printable(str(error)), 400)
                    if not isinstance(error, UsageError):
                        text = f'{type(error).__name__}: {text}'
                    if str(source) not in text:
                        text = f'{source}: {text}'
                    print(f'error: {text}', file=sys.stderr)
                    failed += 1
                if self.stopped:
                    break
        return failed

    def write(self, path: Path, **info: str) -> None:
        """Write what was found as JSON, that of a detector as COCO's."""
        from anchorformer_mm.analysis.pictures import class_name

        labels = [a['category_id'] for a in self.annotations]
        number = max([len(self.meta.get('classes') or ()), *labels])
        names = [class_name(self.meta, label) for label in range(number)]
        content = dict(info=info, classes=names, images=self.images)
        if self.detects:
            content['annotations'] = self.annotations
            content['categories'] = [
                dict(id=i, name=name) for i, name in enumerate(names, 1)
            ]
        text = json.dumps(content, indent=1, ensure_ascii=False) + '\n'
        with replacing(path) as temporary:
            # What of a file's name is no character becomes an escape of JSON.
            temporary.write_text(text, 'utf-8', errors='backslashreplace')


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    args = parse_args()
    # Imports what was just checked.
    from anchorformer_mm.apis import image_pipeline, load_model, read_config

    sources, root = find_sources(args.inputs, args.out)
    cfg = read_config(args.config, args.cfg_options)
    image_pipeline(cfg)
    (args.out / 'pictures').mkdir(parents=True, exist_ok=True)
    predictor = Predictor(load_model(cfg, args.checkpoint, args.device), args)
    failed = predictor.predict_all(sources)
    path = args.out / 'predictions.json'
    predictor.write(
        path, config=args.config, checkpoint=args.checkpoint, root=root
    )
    found = [f'{printable(n)} {i}' for n, i in predictor.found.most_common()]
    told = f'found: {listing(found, 10)}' if found else 'nothing found'
    print(f'{len(predictor.images)} images, {told}; see {path}')
    if failed:
        print(f'{failed} inputs could not be used', file=sys.stderr)
    if failed or predictor.stopped:
        raise SystemExit(130 if predictor.stopped else 1)


if __name__ == '__main__':
    run_command_line(main)
