"""Quantise an ONNX file to INT8, calibrated with images."""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', type=Path, help='ONNX file of export_onnx.py')
    parser.add_argument(
        '--images',
        nargs='+',
        type=Path,
        required=True,
        help='images to calibrate with, or folders of them, with the folders '
        'in these: some like '
        'those that the model will see, such as of its training data',
    )
    parser.add_argument(
        '--out', type=Path, required=True, help='ONNX file to make'
    )
    parser.add_argument(
        '--count',
        type=int,
        default=100,
        help='how many of the images to use, evenly spread (100)',
    )
    parser.add_argument(
        '--method',
        choices=['minmax', 'percentile', 'entropy'],
        default='minmax',
        help='how ranges follow from the images (minmax)',
    )
    parser.add_argument(
        '--exclude',
        nargs='+',
        default=[],
        metavar='NAME',
        help='nodes that stay in float; * stands for anything',
    )
    parser.add_argument(
        '--per-channel',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='a scale for each channel of the weights',
    )
    args = parser.parse_args()
    if args.count < 1:
        raise UsageError(f'--count must be 1 or more, got {args.count}')
    if args.out.resolve() == args.model.resolve():
        raise UsageError(f'--out would overwrite the model {args.model}')
    return args


def choose(images: list[Path], count: int) -> list[Path]:
    """At most ``count`` of the images, evenly spread over them."""
    if len(images) <= count:
        return images
    at = np.linspace(0, len(images) - 1, count).round().astype(int)
    return [images[i] for i in at]


def main() -> None:
    check_environment(['onnx', 'onnxruntime'])
    args = parse_args()
    # Beside this file: both prepare an image alike.
    import predict_onnx

    from anchorformer_mm.deployment.quantization import quantize

    try:
        model = predict_onnx.load_model(args.model)
        images = predict_onnx.find_images(args.images, deep=True)
        images = choose(images, args.count)
        print(f'calibrating with {len(images)} images', file=sys.stderr)
        names = quantize(
            args.model,
            args.out,
            [partial(predict_onnx.read_input, model, i) for i in images],
            method=args.method,
            exclude=args.exclude,
            per_channel=args.per_channel,
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
