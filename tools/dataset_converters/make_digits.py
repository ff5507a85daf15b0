"""Make the embedded data set, "digits": real handwriting, no download.

python tools/dataset_converters/make_digits.py --out data/digits
"""

import argparse
import signal
import sys

from anchorformer_mm.datasets import DigitsSpec, write_digits


def _parser() -> argparse.ArgumentParser:
    default = DigitsSpec()
    parser = argparse.ArgumentParser(
        description='Make the digits data set: COCO boxes, segmentation maps '
        'and single digits, from the handwriting that scikit-learn carries.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--out', default='data/digits', help='folder to make')
    add('--num-train', type=int, default=default.num_train, help='scenes')
    add('--num-val', type=int, default=default.num_val, help='scenes')
    size, pair = default.scene_size, ('MIN', 'MAX')
    add('--scene-size', type=int, nargs=2, default=size, help='W H, px')
    text = 'px; None is 16 and half the shorter side of a scene'
    add('--digit-height', type=int, nargs=2, metavar=pair, help=text)
    add('--seed', type=int, default=default.seed, help='of every choice')
    add('--workers', type=int, default=1, help='processes')
    text = 'replace a digits data set that was made with other arguments'
    add('--force', action='store_true', help=text)
    return parser


def main() -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    args = parser.parse_args()
    # A polite kill cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        spec = DigitsSpec(
            num_train=args.num_train,
            num_val=args.num_val,
            scene_size=tuple(args.scene_size),
            digit_height=args.digit_height and tuple(args.digit_height),
            seed=args.seed,
        )
        how = dict(workers=args.workers, force=args.force, progress=True)
        written = write_digits(args.out, spec, **how)
    except ValueError as error:
        parser.exit(2, f'{parser.prog}: error: {error}\n')
    except (OSError, ImportError) as error:
        parser.exit(1, f'{parser.prog}: error: {error}\n')
    except KeyboardInterrupt:
        parser.exit(130, f'{parser.prog}: interrupted, nothing was written\n')
    there = 'already there, made with the same arguments'
    print(f'{args.out}: {"written" if written else there}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
