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
    images = {}
    for line in path.read_text(encoding='utf-8-sig').split('\n'):
        if (name := line.strip()) and name not in images:
            images[name] = read_image(root, name, len(images) + 1)
    return [*images.values()]


def read_image(root: Path, name: str, number: int) -> tuple[dict, list]:
    path = root / 'Annotations' / f'{name}.xml'
    folder = root / 'JPEGImages' / Path(name).parent
    files = [f for f in folder.glob('*') if f.stem == Path(name).name]
    if not files:
        raise UsageError(f'{root}/JPEGImages/{name}.jpg does not exist')
    try:
        tree = ElementTree.parse(path)
        size = [int(float(tree.findtext(f'size/{side}') or 0))
                for side in ('width', 'height')]  # fmt: skip
        if min(size) <= 0:
            size = cv2.imread(str(files[0])).shape[1::-1]
        objects = [
            (
                item.findtext('name').strip(),
                [
                    float(item.findtext(f'bndbox/{corner}'))
                    for corner in ('xmin', 'ymin', 'xmax', 'ymax')
                ],
                bool(float(item.findtext('difficult') or 0)),
            )
            for item in tree.iterfind('object')
        ]
    # Something is not there, or no number.
    except (AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise UsageError(f'{path} cannot be used: {error}') from None
    file = str(files[0].relative_to(root / 'JPEGImages'))
    return dict(
        id=number, file_name=file, width=size[0], height=size[1]
    ), objects


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
                    annotations.append(
                        dict(
                            id=len(annotations) + 1,
                            image_id=image['id'],
                            category_id=ids[name],
                            bbox=[x1, y1, x2 - x1, y2 - y1],
                            area=(x2 - x1) * (y2 - y1),
                            iscrowd=int(difficult and not args.keep_difficult),
                        )
                    )
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
        for reason, number in left.items():
            print(
                f'{split}: {number} objects {reason} left out', file=sys.stderr
            )


if __name__ == '__main__':
    run_command_line(main)
