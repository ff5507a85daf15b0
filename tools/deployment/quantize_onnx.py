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
    count = 'how many of the images to use, evenly spread (100)'
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
    args = parser.parse_args()
    if args.count < 1:
        raise UsageError(f'--count must be 1 or more, got {args.count}')
    if args.out.resolve() == args.model.resolve():
        raise UsageError(f'--out would overwrite the model {args.model}')
    return args


def main() -> None:
    check_environment(['onnx', 'onnxruntime'])
    args = parse_args()
    # Beside this file: both prepare an image alike.
    import predict_onnx

    from anchorformer_mm.deployment.quantization import quantize

    try:
        model = predict_onnx.load_model(args.model)
        images = predict_onnx.find_images(args.images)
        count = min(args.count, len(images))
        at = np.linspace(0, len(images) - 1, count).round().astype(int)
        images = [images[i] for i in at]
        print(f'calibrating with {len(images)} images', file=sys.stderr)
        names = quantize(
            args.model,
            args.out,
            [partial(model.read, i) for i in images],
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
