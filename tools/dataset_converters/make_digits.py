"""Make the embedded data set, "digits": real handwriting, no download.

python tools/dataset_converters/make_digits.py --out data/digits
"""

import argparse
import signal
import sys
from typing import NoReturn

from anchorformer_mm.datasets import DigitsSpec, write_digits


class _Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {message}\n')


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {value}')
    return value


def _parser() -> _Parser:
    default = DigitsSpec()
    parser = _Parser(
        description='Make the digits data set: COCO boxes, segmentation maps '
        'and single digits, from the handwriting that scikit-learn carries.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--out', default='data/digits', help='folder to make')
    parser.add_argument(
        '--num-train', type=int, default=default.num_train, help='scenes'
    )
    parser.add_argument(
        '--num-val', type=int, default=default.num_val, help='scenes'
    )
    parser.add_argument(
        '--scene-size',
        type=int,
        nargs=2,
        metavar=('W', 'H'),
        default=default.scene_size,
        help='px',
    )
    parser.add_argument(
        '--digit-height',
        type=int,
        nargs=2,
        metavar=('MIN', 'MAX'),
        help='px; None is 16 and half the shorter side of a scene',
    )
    parser.add_argument(
        '--seed', type=int, default=default.seed, help='of every choice'
    )
    parser.add_argument(
        '--workers',
        type=_positive,
        default=1,
        help='processes; the files are the same for any number',
    )
    parser.add_argument(
        '--force',
        action='store_true',
        help='replace a digits data set that was made with other arguments',
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        spec = DigitsSpec(
            num_train=args.num_train,
            num_val=args.num_val,
            scene_size=tuple(args.scene_size),
            digit_height=args.digit_height and tuple(args.digit_height),
            seed=args.seed,
        )
    except ValueError as error:
        parser.error(str(error))
    # A polite kill cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        written = write_digits(
            args.out,
            spec,
            workers=args.workers,
            force=args.force,
            progress=True,
        )
    except (OSError, ImportError) as error:
        parser.exit(1, f'{parser.prog}: error: {error}\n')
    except KeyboardInterrupt:
        parser.exit(130, f'{parser.prog}: interrupted, nothing was written\n')
    print(
        f'{args.out}: written'
        if written
        else f'{args.out}: already there, made with the same arguments'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
