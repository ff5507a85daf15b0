"""Quantise an ONNX file to INT8, calibrated with images."""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line

HELD_OUT = 50
# Shares of the nodes, from the first on, that stay in float: tried in turn.
SHARES = (0.0, 0.125, 0.25, 0.375, 0.5)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('model', type=Path, help='ONNX file of export_onnx.py')
    add(
        '--images',
        nargs='+',
        type=Path,
        required=True,
        help='images to calibrate with, or folders of them: some like those '
        'that the model will see, such as of its training data',
    )
    add('--out', type=Path, required=True, help='ONNX file to make')
    count = 'how many of the images to calibrate with, evenly spread (100)'
    add('--count', type=int, default=100, help=count)
    methods = ['minmax', 'percentile', 'entropy']
    method = 'how ranges follow from the images (minmax)'
    add('--method', choices=methods, default='minmax', help=method)
    exclude = 'nodes that stay in float; * stands for anything'
    add('--exclude', nargs='+', default=[], metavar='NAME', help=exclude)
    add(
        '--per-channel',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='a scale for each channel of the weights',
    )
    add(
        '--float-first',
        type=float,
        metavar='SHARE',
        help='share of the nodes, of those that come first in the network, '
        f'that stays in float (default: the first of {SHARES[0]:g}, '
        f'{", ".join(f"{s:g}" for s in SHARES[1:])} that keeps --max-loss)',
    )
    add(
        '--max-loss',
        type=float,
        default=0.1,
        metavar='SHARE',
        help='make no file if more than this share of detections, classes of '
        'images or classes of pixels changes on held-out images (0.1)',
    )
    args = parser.parse_args()
    if not 0 <= args.max_loss <= 1:
        raise UsageError(
            f'--max-loss must be from 0 to 1, got {args.max_loss}'
        )
    if args.float_first is not None and not 0 <= args.float_first < 1:
        raise UsageError(
            '--float-first must be 0 or more and below 1, got '
            f'{args.float_first}'
        )
    if args.count < 1:
        raise UsageError(f'--count must be 1 or more, got {args.count}')
    if args.out.resolve() == args.model.resolve():
        raise UsageError(f'--out would overwrite the model {args.model}')
    return args


def spread(paths: list[Path], count: int) -> list[Path]:
    """Choose some of the paths, evenly."""
    count = min(count, len(paths))
    at = np.linspace(0, len(paths) - 1, count).round().astype(int)
    return [paths[i] for i in at]


def main() -> None:
    check_environment(['onnx', 'onnxruntime'])
    args = parse_args()
    # Beside this file: both prepare an image alike.
    import predict_onnx

    from anchorformer_mm.deployment.quantization import measure_loss, quantize
    from anchorformer_mm.utils.files import replacing

    try:
        model = predict_onnx.load_model(args.model)
        images = predict_onnx.find_images(args.images)
        # Every fifth is held out, but no more are than are needed.
        held_out = spread(images[::5], HELD_OUT)
        images = [path for path in images if path not in held_out]
        if not images:
            raise UsageError('--images must be 2 or more: one is held out')
        images = spread(images, args.count)
        print(
            f'calibrating with {len(images)} images, {len(held_out)} others '
            'are held out',
            file=sys.stderr,
        )
        before = [model.run(model.read(path)) for path in held_out]
        shares = SHARES if args.float_first is None else [args.float_first]
        with replacing(args.out) as temporary:
            for share in shares:
                names = quantize(
                    args.model,
                    temporary,
                    [partial(model.read, i) for i in images],
                    method=args.method,
                    exclude=args.exclude,
                    float_first=share,
                    per_channel=args.per_channel,
                )
                smaller = predict_onnx.load_model(temporary)
                after = [smaller.run(model.read(path)) for path in held_out]
                loss, words = measure_loss(model.task, before, after)
                print(
                    f'{len(names)} nodes in INT8, the first {share:.1%} in '
                    f'float: on {len(held_out)} held-out images {words}'
                )
                if loss <= args.max_loss:
                    break
            else:
                raise UsageError(
                    f'{args.out} is not written: a loss of {loss:.1%} is '
                    f'above --max-loss {args.max_loss:.1%}; --method, '
                    '--exclude, or more images of the kind may help'
                )
    except predict_onnx.InputError as error:
        raise UsageError(str(error)) from error
    before, after = (f.stat().st_size / 2**20 for f in (args.model, args.out))
    print(
        f'{args.out}: {len(names)} nodes in INT8, {after:.2f} MiB instead of '
        f'{before:.2f} MiB'
    )


if __name__ == '__main__':
    run_command_line(main)
