"""Turn a data set in the layout of Pascal VOC into COCO annotations.

Writes OUT/<split>.json; the images stay where they are, in VOC/JPEGImages.
"""

import argparse
import sys
from pathlib import Path

from anchorformer_mm.datasets.voc_to_coco import SPLITS, convert_voc
from anchorformer_mm.utils.errors import UsageError, run_command_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'voc',
        type=Path,
        help='folder with Annotations, JPEGImages and ImageSets/Main',
    )
    parser.add_argument(
        '--out', required=True, type=Path, help='folder to write to'
    )
    parser.add_argument(
        '--splits',
        nargs='+',
        default=SPLITS,
        metavar='SPLIT',
        help=f'lists of ImageSets/Main (default: {" ".join(SPLITS)})',
    )
    parser.add_argument(
        '--classes',
        nargs='+',
        metavar='CLASS',
        help='names in the order of their ids (default: all, sorted)',
    )
    parser.add_argument(
        '--first-pixel',
        type=int,
        choices=[0, 1],
        default=1,
        help='what the files call the first pixel: VOC says 1 (default), '
        'labelImg 0',
    )
    parser.add_argument(
        '--keep-difficult',
        action='store_true',
        help='take difficult objects like any other; they are otherwise '
        'neither learnt nor counted (iscrowd)',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace files of OUT'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        written, warnings = convert_voc(
            args.voc,
            args.out,
            args.splits,
            classes=args.classes,
            first_pixel=args.first_pixel,
            keep_difficult=args.keep_difficult,
            overwrite=args.overwrite,
        )
    except OSError as error:
        raise UsageError(str(error)) from None
    for warning in warnings:
        print(f'warning: {warning}', file=sys.stderr)
    for path, coco in written.items():
        names = ', '.join(category['name'] for category in coco['categories'])
        print(
            f'{path}: {len(coco["images"])} images, '
            f'{len(coco["annotations"])} boxes of {names}'
        )


if __name__ == '__main__':
    run_command_line(main)
