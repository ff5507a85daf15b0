"""Turn annotated boxes into COCO files, to train a detector on them.

Reads YOLO text files (with data.yaml, classes.txt or obj.names), Pascal VOC
XML, with PaddleDetection's lists, too, LabelMe JSON, and COCO JSON as CVAT and
Roboflow export it. The layout of the folders does not matter: files are
matched by name. Images stay where they are. Polygons become masks with their
boxes.
"""

import argparse
import hashlib
import io
import json
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import yaml
from PIL import Image
from rich.console import Console
from rich.progress import track

from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.files import replacing
from anchorformer_mm.utils.text import listing, printable

SPLITS = ('train', 'val', 'test')
# What names of folders and lists call them.
SPLIT_OF = dict(trainval='train', training='train', valid='val')
SPLIT_OF |= dict(train='train', val='val', validation='val', test='test')
# What OpenCV reads, too.
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
DECODERS = ('BMP', 'JPEG', 'PNG', 'TIFF', 'WEBP')
# What tells a format: keys of its JSON or YAML, and the root of its XML.
KEYS = dict(
    coco={'images', 'annotations', 'categories'},
    labelme={'shapes', 'imagePath'},
    yolo={'names'},
    voc={'annotation'},
)
CLASS_LISTS = ('classes.txt', 'obj.names')
# Shapes of LabelMe with a box, and the points that they have at least.
SHAPES = dict(circle=2, mask=2, polygon=3, rectangle=2, rotation=4)


@dataclass
class Entry:
    """An image with its objects: name, box as xyxy, perhaps segmentation."""

    source: Path  # the file that annotates it
    image: Path | None
    split: str | None
    objects: list[dict]
    relative: bool = False  # corners are parts of the image's sides, not px
    size: tuple[int, int] = (0, 0)
    group: str = ''  # equal for images that must share a split


def lines_of(path: Path) -> list[str]:
    text = path.read_text(encoding='utf-8-sig', errors='replace')
    return [line.strip() for line in text.splitlines()]


def parse(path: Path) -> Any:
    """Content of a file; of XML, its root by its name."""
    suffix = path.suffix.lower()
    if path.name in CLASS_LISTS:
        return dict(names=list(filter(None, lines_of(path))))
    if suffix == '.xml':
        root = ElementTree.parse(path).getroot()
        return {root.tag: root}
    if suffix == '.json':
        return json.loads(path.read_bytes())
    if suffix in ('.yaml', '.yml'):
        return yaml.safe_load(path.read_text(encoding='utf-8-sig'))
    return None


class Source:
    """A folder with annotations and images, and what is left out of it."""

    def __init__(self, root: Path, written: Iterable[Path]) -> None:
        self.root = Path(os.path.abspath(root))
        self.files: list[Path] = []
        # Content of the files of each format.
        self.parsed: dict[str, dict[Path, Any]] = defaultdict(dict)
        # Classes in the order of the source, and names of groups of classes.
        self.names: list[str] = []
        self.groups: set[str] = set()
        # Cases of what is left out, by the reason.
        self.told: dict[str, list[str]] = defaultdict(list)
        written = {path.resolve() for path in written}
        for folder, folders, names in os.walk(self.root, followlinks=True):
            # '._a.xml' and __MACOSX are left by archives of macOS.
            folders[:] = [f for f in folders if f[0] not in '._']
            paths = [Path(folder, n) for n in names if n[0] != '.']
            self.files += [p for p in paths if p.resolve() not in written]
        self.files.sort()
        self.images = [p for p in self.files if p.suffix.lower() in SUFFIXES]
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        for path in self.images:
            self.by_name[path.name].append(path)
            self.by_name[path.stem].append(path)
        for path in self.files:
            try:
                content = parse(path)
            # ElementTree's is a SyntaxError.
            except (SyntaxError, ValueError, yaml.YAMLError) as error:
                case = f'{self.short(path)}: {error}'
                self.tell('files left out: broken', case)
                continue
            keys = content.keys() if isinstance(content, dict) else set()
            kinds = [kind for kind in KEYS if KEYS[kind] <= keys]
            if kinds:
                # A copy of the image.
                content.pop('imageData', None)
                self.parsed[kinds[0]][path] = content

    def tell(self, reason: str, *case: object) -> None:
        """Keep a case of words and paths."""
        words = (self.short(c) if isinstance(c, Path) else c for c in case)
        self.told[reason].append(' '.join(map(str, words)))

    def short(self, path: Path) -> str:
        return os.path.relpath(path, self.root)

    def split_of(self, path: Path, own_name: bool = False) -> str | None:
        """The split that the folders of a file, or its name, speak of."""
        path = path.relative_to(self.root)
        text = str(path if own_name else path.parent).lower()
        words = re.findall('[a-z]+', text)
        found = [SPLIT_OF[word] for word in words if word in SPLIT_OF]
        return found[-1] if found else None

    def image(self, source: Path, *names: str) -> Path | None:
        """The image of the first name that there is, with or without suffix.

        Of several, the one whose folders and split are most alike.
        """
        for name in names:
            *folders, last = re.split(r'[\\/]', name)
            found = self.by_name.get(last) or self.by_name.get(Path(last).stem)
            if found:
                break
        else:
            text = 'images left out: not there'
            return self.tell(text, names[0], 'of', source)
        wanted = {*source.parent.parts, *folders}
        split = self.split_of(source, own_name=True)
        ranked = sorted(
            (len(wanted & {*p.parts}), self.split_of(p) == split, p)
            for p in found
        )
        if len(ranked) > 1 and ranked[-1][:2] == ranked[-2][:2]:
            return self.tell('images left out: several fit', source)
        return ranked[-1][-1]


def polygons(name: str, parts: list[list[float]]) -> dict:
    """An object of polygons [x1, y1, x2, y2, ...], with its box."""
    points = np.concatenate([np.reshape(part, (-1, 2)) for part in parts])
    box = [*points.min(0).tolist(), *points.max(0).tolist()]
    return dict(name=name, box=box, segmentation=parts)


def read_yolo(source: Source) -> Iterator[Entry]:
    files = source.parsed['yolo']
    if len(files) > 1:
        raise UsageError(
            f'{listing(map(source.short, files))} each name classes: give '
            'the folder of one of them'
        )
    ((path, content),) = files.items()
    names = content['names']
    if isinstance(names, dict) and all(str(i).isdecimal() for i in names):
        names = {int(i): name for i, name in names.items()}
        last = max(names, default=-1)
        names = [names.get(i, f'class {i}') for i in range(last + 1)]
    if not isinstance(names, list) or not names:
        raise UsageError(
            f'{source.short(path)}: names must be a list of classes, or a '
            f'dict of their numbers, got {content["names"]!r}'
        )
    source.names = [str(name) for name in names]
    splits = yolo_splits(source, path, content)
    labels = {p for p in source.files if p.suffix == '.txt'}
    for image in sorted({*splits, *source.images}):
        # The last folder called images has another called labels beside it.
        swapped = re.sub('(.*)images', r'\1labels', str(image.parent))
        name = f'{image.stem}.txt'
        places = [Path(swapped, name), image.with_name(name)]
        label = next((path for path in places if path.is_file()), None)
        labels.discard(label)
        if not image.is_file():
            source.tell('images left out: not there', image)
        elif splits and image not in splits:
            source.tell('images left out: in no split', image)
        else:
            if label is None:
                text = 'images without a text file, taken as empty'
                source.tell(text, image)
            rows = enumerate(lines_of(label) if label else (), 1)
            found = [read_row(source, r, label, i) for i, r in rows if r]
            found = [item for item in found if item]
            split = splits.get(image) or source.split_of(image)
            yield Entry(label or image, image, split, found, relative=True)
    for label in sorted(labels):
        if re.fullmatch(r'[\d.\se+-]+', '\n'.join(lines_of(label))):
            source.tell('text files without an image', label)


def yolo_splits(source: Source, path: Path, content: dict) -> dict[Path, str]:
    """Images that a data.yaml gives to each split."""
    root, splits = path.parent / str(content.get('path') or ''), {}
    for split in SPLITS:
        places = content.get(split) or []
        for place in [places] if isinstance(places, str) else places:
            # Roboflow's are one folder too high.
            names = [root / place, path.parent / place.removeprefix('../')]
            found = [os.path.abspath(p) for p in names if p.exists()]
            if not found:
                source.tell(f'not there, but named by {path.name}', place)
                continue
            there = Path(found[0])
            if there.is_file():
                lines = filter(None, lines_of(there))
                images = [there.parent / line for line in lines]
            else:
                images = [i for i in source.images if there in i.parents]
            splits = dict.fromkeys(images, split) | splits
    return splits


def read_row(source: Source, row: str, path: Path, number: int) -> dict | None:
    """An object of YOLO."""
    where = f'{source.short(path)}:{number}'
    try:
        label, *values = map(float, row.split())
    except ValueError:
        values = []
    # A box, perhaps with a score; or a polygon.
    if len(values) not in (4, 5) and (len(values) < 6 or len(values) % 2):
        return source.tell('objects left out: no box, no polygon', where)
    if label not in range(len(source.names)):
        return source.tell('objects left out: unknown class', where)
    name = source.names[int(label)]
    if len(values) >= 6:
        return polygons(name, [values])
    x, y, w, h = values[:4]
    return dict(name=name, box=[x - w / 2, y - h / 2, x + w / 2, y + h / 2])


def read_voc(source: Source) -> Iterator[Entry]:
    lists = {}
    for name in ('trainval', *SPLITS):
        for path in source.files:
            lines = lines_of(path) if path.name == f'{name}.txt' else ()
            for line in filter(None, lines):
                # A stem; or PaddleDetection's image and annotation.
                if line.endswith('.xml'):
                    line = os.path.normpath(path.parent / line.split()[-1])
                lists[line] = SPLIT_OF[name]
    for path in source.files:
        if path.name == 'label_list.txt':
            source.names = list(filter(None, lines_of(path)))
    for path, content in source.parsed['voc'].items():
        split = lists.get(path.stem) or lists.get(str(path))
        if lists and not split:
            source.tell('images left out: in no list of a split', path)
            continue
        tree, objects = content['annotation'], []
        for item in tree.iterfind('object'):
            try:
                corners = ('xmin', 'ymin', 'xmax', 'ymax')
                box = [float(item.findtext(f'bndbox/{c}')) for c in corners]
                name = item.findtext('name').strip()
                crowd = int(float(item.findtext('difficult') or 0) > 0)
                objects.append(dict(name=name, box=box, iscrowd=crowd))
            # Something is not there, or no number.
            except (AttributeError, TypeError, ValueError):
                source.tell('objects left out: no box or no name', path)
        # Images may have got other names and suffixes since.
        told = (tree.findtext('filename') or '').strip()
        image = source.image(path, path.stem, *filter(None, [told]))
        yield Entry(path, image, split or source.split_of(path), objects)


def read_labelme(source: Source) -> Iterator[Entry]:
    for path, content in source.parsed['labelme'].items():
        # Of parts of one object, which share a number.
        parts: dict[tuple, list] = defaultdict(list)
        for number, shape in enumerate(content['shapes']):
            kind = shape.get('shape_type') or 'polygon'
            try:
                points = np.array(shape['points'], float).reshape(-1, 2)
                name, least = str(shape['label']).strip(), SHAPES[kind]
            except (KeyError, TypeError, ValueError):
                points, least = (), 1
            if len(points) < least:
                source.tell(f'objects left out: {kind} without a box', path)
                continue
            if kind == 'circle':
                radius = np.linalg.norm(points[1] - points[0])
                points = points[0] + [[-radius], [radius]]
            group = shape.get('group_id')
            key = (name, least > 2, group, number if group is None else None)
            parts[key].append(points.ravel().tolist())
        objects = []
        for (name, has_mask, *_), group in parts.items():
            objects.append(polygons(name, group))
            if not has_mask:
                del objects[-1]['segmentation']
        image = source.image(path, str(content['imagePath']), path.stem)
        yield Entry(path, image, source.split_of(path), objects)


def read_coco(source: Source) -> Iterator[Entry]:
    for path, content in source.parsed['coco'].items():
        # Ids may be numbers in one place and texts in the other.
        names = {str(c['id']): str(c['name']) for c in content['categories']}
        source.names = [*dict.fromkeys([*source.names, *names.values()])]
        groups = (c.get('supercategory') for c in content['categories'])
        source.groups |= {*map(str, groups)}
        of_image = defaultdict(list)
        for item in content['annotations']:
            of_image[str(item.get('image_id'))].append(item)
        for entry in content['images']:
            objects = []
            for item in of_image.pop(str(entry['id']), ()):
                name = names.get(str(item.get('category_id')))
                found = read_annotation(item, name) if name else {}
                if 'box' in found:
                    objects.append(found)
                else:
                    why = 'no box' if name else 'unknown class'
                    case = (item.get('id'), 'of', entry['file_name'])
                    source.tell(f'objects left out: {why}', *case)
            image = source.image(path, entry['file_name'])
            split = source.split_of(path, own_name=True)
            split = split or (image and source.split_of(image))
            yield Entry(path, image, split, objects)
        for key, items in of_image.items():
            case = (len(items), 'of image', key, 'in', path)
            source.tell('objects left out: of no image', *case)


def read_annotation(item: dict, name: str) -> dict:
    """An object of COCO, perhaps without a box."""
    found, parts = dict(name=name), item.get('segmentation') or []
    if isinstance(parts, list):
        # One polygon may stand without the brackets of a list of them.
        flat = parts and not isinstance(parts[0], list)
        parts = [parts] if flat else parts
        parts = [p for p in parts if len(p) >= 6 and len(p) % 2 == 0]
        found = polygons(name, parts) if parts else found
    else:
        found['segmentation'] = parts
    if len(item.get('bbox') or ()) == 4:
        x, y, w, h = map(float, item['bbox'])
        found['box'] = [x, y, x + w, y + h]
    return found | dict(iscrowd=int(bool(item.get('iscrowd'))))


READERS = dict(
    yolo=read_yolo, voc=read_voc, labelme=read_labelme, coco=read_coco
)


def look_at(entry: Entry) -> bool:
    """Set size and group of an image; tell if it can be decoded."""
    data = entry.image.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=DECODERS) as image:
            # As mmcv turns it.
            turned = image.getexif().get(0x0112, 1) > 4
            entry.size = image.size[::-1] if turned else image.size
            # A JPEG decodes at an eighth of its size.
            image.draft(None, (1, 1))
            image.load()
    # Decoders raise what they like.
    except Exception:
        return False
    # Roboflow's copies of an image differ in what follows '.rf.'.
    stem, mark, _ = entry.image.stem.rpartition('.rf.')
    entry.group = stem if mark else hashlib.sha256(data).hexdigest()
    return True


def look_at_images(source: Source, entries: Iterable[Entry]) -> list[Entry]:
    """Those whose image can be decoded, and comes once."""
    unique: dict[Path, Entry] = {}
    for entry in entries:
        path = entry.image and entry.image.resolve()
        if path and unique.setdefault(path, entry) is not entry:
            source.tell('images left out: annotated twice', entry.image)
    entries, sound = [*unique.values()], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seen, console = pool.map(look_at, entries), Console(stderr=True)
        seen = track(seen, 'images', len(entries), console=console)
        for is_sound, entry in zip(seen, entries, strict=True):
            if is_sound:
                sound.append(entry)
            else:
                source.tell('images left out: broken', entry.image)
    return sound


def divide(entries: list[Entry], share: float, seed: int) -> bool:
    """Give every image a split; tell if those to validate were drawn."""
    groups = defaultdict(list)
    for entry in entries:
        entry.split = entry.split or 'train'
        if entry.split == 'train':
            groups[entry.group].append(entry)
    if any(entry.split == 'val' for entry in entries):
        return False
    total = sum(map(len, groups.values()))
    if len(groups) < 2:
        raise UsageError(f'{total} different images cannot be split in two')
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    wanted = max(round((1 - share) * total), 1)
    # One is left to train on.
    for key in order[1:]:
        for entry in groups[key] if wanted > 0 else ():
            entry.split = 'val'
            wanted -= 1
    return True


def annotation(
    source: Source, entry: Entry, item: dict, ids: dict[str, int]
) -> dict | None:
    """An object as of COCO, without id and image, if it can be one."""
    case = (item['name'], 'in', entry.source)
    if item['name'] not in ids:
        return source.tell('objects left out: not in --classes', *case)
    scale = np.array(entry.size if entry.relative else (1, 1), float)
    box = np.reshape(item['box'], (2, 2)) * scale
    inside = box.clip(0, entry.size)
    if not np.isfinite(box).all() or (box[1] <= box[0]).any():
        return source.tell('objects left out: box without area', *case)
    if (inside[1] - inside[0] < 1).any():
        text = 'objects left out: box outside of the image, or below 1 px'
        return source.tell(text, *case)
    if np.abs(inside - box).max() > 1:
        source.tell('boxes cut at the edge of the image', *case)
    w, h = (inside[1] - inside[0]).tolist()
    parts, areas = item.get('segmentation'), []
    if isinstance(parts, list):
        parts = [np.reshape(part, (-1, 2)) * scale for part in parts]
        areas = [cv2.contourArea(np.float32(part)) for part in parts]
        parts = [part.ravel().tolist() for part in parts]
    return dict(
        category_id=ids[item['name']],
        bbox=[*inside[0].tolist(), w, h],
        area=sum(areas) or w * h,
        iscrowd=item.get('iscrowd', 0),
    ) | (dict(segmentation=parts) if parts else {})


def build_coco(
    source: Source, entries: list[Entry], ids: dict[str, int], root: Path
) -> dict:
    """Content of a COCO file; names of images start from ``root``."""
    images, annotations = [], []
    for number, entry in enumerate(entries, 1):
        # '..' is taken by the system after links are followed.
        folder = os.path.relpath(entry.image.parent.resolve(), root.resolve())
        name = Path(folder, entry.image.name).as_posix()
        width, height = entry.size
        image = dict(id=number, file_name=name, width=width, height=height)
        images.append(image)
        for item in entry.objects:
            if found := annotation(source, entry, item, ids):
                keys = dict(id=len(annotations) + 1, image_id=number)
                annotations.append(keys | found)
    categories = [dict(id=i, name=name) for name, i in ids.items()]
    return dict(images=images, annotations=annotations, categories=categories)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('source', type=Path, help='folder with annotations and images')
    add('--out', required=True, type=Path, help='folder to write to')
    add('--format', choices=READERS, help='default: recognised')
    text = 'in order, without the others (default: all)'
    add('--classes', nargs='+', help=text)
    text = (
        'of images to train on, if the source has none to validate. Equal '
        "files, and Roboflow's copies of an image, stay together. Which "
        'images are of one video is not known: put them into folders called '
        'train and val yourself (default: 0.8)'
    )
    add('--split', type=float, default=0.8, metavar='SHARE', help=text)
    add('--seed', type=int, default=0, help='of the split (default: 0)')
    text = 'number of the first pixel of VOC (default: 0 if any box has it)'
    add('--first-pixel', type=int, choices=[0, 1], help=text)
    text = 'difficult and crowd objects are as any others'
    add('--keep-difficult', action='store_true', help=text)
    text = 'folder that names of images start from (default: OUT)'
    add('--image-root', type=Path, help=text)
    add('--overwrite', action='store_true', help='replace files of OUT')
    args = parser.parse_args()
    if not 0 < args.split < 1:
        raise UsageError(f'--split must lie between 0 and 1, got {args.split}')
    if not args.source.is_dir():
        raise UsageError(f'SOURCE must be a folder, got {args.source}')
    return args


def main() -> None:
    args = parse_args()
    paths = {split: args.out / f'{split}.json' for split in SPLITS}
    for path in paths.values():
        if path.exists() and not args.overwrite:
            raise UsageError(f'{path} exists; --overwrite replaces it')
    source = Source(args.source, paths.values())
    wanted = [args.format] if args.format else READERS
    formats = [kind for kind in wanted if kind in source.parsed]
    if len(formats) > 1:
        told = ' and of '.join(formats)
        raise UsageError(f'{args.source} is of {told}: choose with --format')
    if not formats:
        raise UsageError(
            f'{args.source} has no annotations of {", ".join(wanted)}; those '
            'of yolo need data.yaml or classes.txt'
        )
    entries = look_at_images(source, READERS[formats[0]](source))
    objects = [item for entry in entries for item in entry.objects]
    if formats[0] == 'voc':
        corners = [corner for item in objects for corner in item['box']]
        first = args.first_pixel
        if first is None:
            first = int(min(corners, default=1) >= 1)
        for item in objects:
            item['box'] = [corner - first for corner in item['box']]
        print(f'the first pixel is taken as number {first}')
    if args.keep_difficult:
        for item in objects:
            item['iscrowd'] = 0
    counts = Counter(item['name'] for item in objects)
    # Roboflow lists the name of a group as the first class.
    names = [n for n in source.names if counts[n] or n not in source.groups]
    names = args.classes or names or sorted(counts)
    ids = {name: number for number, name in enumerate(names, 1)}
    drawn = divide(entries, args.split, args.seed)
    root, contents = args.image_root or args.out, {}
    for split in SPLITS:
        inside = [entry for entry in entries if entry.split == split]
        contents[split] = build_coco(source, inside, ids, root)
    if not any(content['annotations'] for content in contents.values()):
        raise UsageError(f'{args.source} has no object that can be used')
    for split, path in paths.items():
        if contents[split]['images']:
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(contents[split]) + '\n')
            report(path, contents[split])
        else:
            path.unlink(missing_ok=True)
    if drawn:
        print(f'val is drawn: --split {args.split} --seed {args.seed}')
    places = {(entry.group, entry.split) for entry in entries}
    splits = Counter(group for group, _ in places)
    if leaks := sum(count > 1 for count in splits.values()):
        print(f'warning: {leaks} images are in more than one split')
    for reason, cases in source.told.items():
        print(printable(f'{reason} ({len(cases)}): {listing(cases)}'))
    print(
        'to train: python tools/train.py '
        'configs/picodet_anchorformer_t_custom.py --cfg-options '
        f'data_root={args.out}\nor in a config of your own:\n'
        f"  data_root = '{args.out}/'\n  classes = {tuple(names)}"
    )


def report(path: Path, content: dict) -> None:
    """Print how many images and boxes there are."""
    items, images = content['annotations'], len(content['images'])
    counts = Counter(item['category_id'] for item in items)
    boxes = (f'{counts[c["id"]]} {c["name"]}' for c in content['categories'])
    empty = images - len({item['image_id'] for item in items})
    crowds = sum(item['iscrowd'] for item in items)
    masks = sum('segmentation' in item for item in items)
    print(
        f'{path}: {images} images, {empty} of them empty; {len(items)} boxes: '
        f'{printable(", ".join(boxes))}'
        + (f'; {masks} with masks' if masks else '')
        + (f'; {crowds} crowds or difficult' if crowds else '')
    )


if __name__ == '__main__':
    run_command_line(main)
