"""Turn a data set in the layout of Pascal VOC into COCO annotations.

Writes OUT/<split>.json; the images stay in VOC/JPEGImages. Boxes become what
mmdet's VOCDataset makes of them, with fractions of pixels; difficult objects
get iscrowd. mmdet trains on VOC files without this; it is for boxes that
count from 0, for images of other suffixes than .jpg, and for COCO's tools.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import cv2

from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.files import replacing

SPLITS = ('train', 'val', 'test')
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.JPG', '.JPEG', '.PNG')
CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('voc', type=Path, help='folder with Annotations and so on')
    add('--out', required=True, type=Path, help='folder to write to')
    add('--splits', nargs='+', default=SPLITS, help='of ImageSets/Main')
    add('--classes', nargs='+', help='in order (default: all, sorted)')
    add('--first-pixel', type=int, choices=[0, 1], default=1,
        help='what the files call it: VOC says 1, labelImg 0')  # fmt: skip
    add('--keep-difficult', action='store_true', help='as any other object')
    add('--overwrite', action='store_true', help='replace files of OUT')
    return parser.parse_args()


def read_split(root: Path, split: str) -> list[tuple[dict, list]]:
    """Read images with their objects: name, corners in px, if difficult."""
    path = root / 'ImageSets/Main' / f'{split}.txt'
    if not path.is_file():
        raise UsageError(f'{path} does not exist')
    lines = path.read_text(encoding='utf-8-sig').splitlines()
    names = dict.fromkeys(filter(None, map(str.strip, lines)))
    for name in names:
        if Path(name).is_absolute() or '..' in Path(name).parts:
            raise UsageError(f'{path} must list images of {root}, not {name}')
    return [read_image(root, name, i) for i, name in enumerate(names, 1)]


def read_image(root: Path, name: str, number: int) -> tuple[dict, list]:
    path = root / 'Annotations' / f'{name}.xml'
    images = root / 'JPEGImages'
    files = [name + suffix for suffix in SUFFIXES]
    files = [file for file in files if (images / file).is_file()]
    if not files:
        raise UsageError(f'{images}/{name}.jpg does not exist')
    try:
        tree = ElementTree.parse(path)
        sides = ('size/width', 'size/height')
        size = [int(float(tree.findtext(side) or 0)) for side in sides]
        if min(size) <= 0:
            size = cv2.imread(str(images / files[0])).shape[1::-1]
        objects = []
        for item in tree.iterfind('object'):
            box = [float(item.findtext(f'bndbox/{c}')) for c in CORNERS]
            difficult = bool(float(item.findtext('difficult') or 0))
            objects.append((item.findtext('name').strip(), box, difficult))
    # Something is not there, or no number.
    except (AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise UsageError(f'{path} cannot be used: {error}') from None
    image = dict(id=number, file_name=files[0])
    return image | dict(width=size[0], height=size[1]), objects


def main() -> None:
    args = parse_args()
    paths = {split: args.out / f'{split}.json' for split in args.splits}
    for path in paths.values():
        if path.exists() and not args.overwrite:
            raise UsageError(f'{path} exists; --overwrite replaces it')
    splits = {split: read_split(args.voc, split) for split in paths}
    pairs = [pair for split in splits.values() for pair in split]
    found = {item[0] for _, objects in pairs for item in objects}
    ids = {n: i for i, n in enumerate(args.classes or sorted(found), 1)}
    for name in ids.keys() - found:
        print(f'warning: no object of class {name}', file=sys.stderr)
    for split, path in paths.items():
        annotations, left = [], Counter()
        for image, objects in splits[split]:
            for name, corners, difficult in objects:
                x1, y1, x2, y2 = (c - args.first_pixel for c in corners)
                outside = x1 >= image['width'] or y1 >= image['height']
                if name not in ids:
                    left[f'of the class {name}'] += 1
                elif min(x2 - x1, y2 - y1) < 1:
                    left['of less than a pixel'] += 1
                elif outside or min(x2, y2) <= 0:
                    left['outside of their image'] += 1
                else:
                    entry = dict(image_id=image['id'], category_id=ids[name])
                    entry['id'] = len(annotations) + 1
                    entry['bbox'] = [x1, y1, x2 - x1, y2 - y1]
                    entry['area'] = (x2 - x1) * (y2 - y1)
                    crowd = difficult and not args.keep_difficult
                    entry['iscrowd'] = int(crowd)
                    annotations.append(entry)
        content = dict(
            images=[image for image, _ in splits[split]],
            annotations=annotations,
            categories=[dict(id=i, name=name) for name, i in ids.items()],
            info=dict(description=f'{split}, converted from VOC'),
        )
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content) + '\n')
        count = f'{len(splits[split])} images, {len(annotations)} boxes'
        print(f'{path}: {count} of {", ".join(ids)}')
        for why, n in left.items():
            print(f'{split}: {n} objects {why} left out', file=sys.stderr)


if __name__ == '__main__':
    run_command_line(main)
