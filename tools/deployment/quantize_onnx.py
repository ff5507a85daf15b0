"""Quantise an ONNX file to INT8, calibrated with images."""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line

HELD_OUT = 50
# Images that tell what each layer loses.
SAMPLE = 8
# What the layers in INT8 may lose, in sum: tried in turn.
TOLERANCES = (6e-3, 2e-3, 6e-4, 2e-4)


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
    runtime = 'in which the file shall be fast (onnx); both run either'
    add(
        '--runtime', choices=['onnx', 'openvino'], default='onnx', help=runtime
    )
    exclude = 'layers that stay in float; * stands for anything'
    add('--exclude', nargs='+', default=[], metavar='NAME', help=exclude)
    add(
        '--per-channel',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='a scale for each channel of the weights',
    )
    add(
        '--tolerance',
        type=float,
        metavar='SHARE',
        help='the layers that lose most stay in float, until the squared '
        'changes of the outputs by each of the others sum up to this at most '
        '(default: the first of '
        f'{", ".join(f"{x:g}" for x in TOLERANCES)} that keeps --max-loss)',
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
    if args.tolerance is not None and not args.tolerance >= 0:
        raise UsageError(
            f'--tolerance must be 0 or more, got {args.tolerance}'
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
    from mmengine.utils import track_iter_progress

    from anchorformer_mm.deployment.quantization import Quantizer, measure_loss
    from anchorformer_mm.utils.files import replacing

    def tell(text: str) -> None:
        print(text, file=sys.stderr)

    try:
        model = predict_onnx.load_model(args.model)
        images = predict_onnx.find_images(args.images)
        # Every fifth is held out, but no more are than are needed.
        held_out = spread(images[::5], HELD_OUT)
        images = [path for path in images if path not in held_out]
        if not images:
            raise UsageError('--images must be 2 or more: one is held out')
        images = spread(images, args.count)
        before = [model.run(model.read(path)) for path in held_out]
        measure_loss(model.task, before, before)
        tell(
            f'calibrating with {len(images)} images, {len(held_out)} others '
            'are held out'
        )
        quantizer = Quantizer(
            args.model,
            [partial(model.read, path) for path in images],
            runtime=args.runtime,
            method=args.method,
            exclude=args.exclude,
            per_channel=args.per_channel,
        )
        layers = quantizer.layers
        tell(f'one layer after another in INT8, {len(layers)} in all')
        sample = [partial(model.read, path) for path in spread(images, SAMPLE)]
        steps = quantizer.errors(sample), len(layers)
        errors = dict(track_iter_progress(steps, file=sys.stderr))
        tell('')
        ranks = sorted(layers, key=errors.get)
        tolerances = TOLERANCES
        if args.tolerance is not None:
            tolerances = [args.tolerance]
        with replacing(args.out) as temporary:
            for tolerance in tolerances:
                sums = np.cumsum([errors[n] for n in ranks])
                small = ranks[: np.searchsorted(sums, tolerance, 'right')]
                quantizer.write(temporary, small)
                smaller = predict_onnx.load_model(temporary)
                after = [smaller.run(model.read(path)) for path in held_out]
                loss, words = measure_loss(model.task, before, after)
                print(
                    f'{len(small)} of {len(layers)} layers in INT8 '
                    f'(tolerance {tolerance:g}): on {len(held_out)} held-out '
                    f'images {words}'
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
    for layer in ranks[len(small) :][::-1]:
        print(f'in float: {layer} (alone in INT8 {errors[layer]:.2g})')
    print(f'{args.out}: {after:.2f} MiB instead of {before:.2f} MiB')


if __name__ == '__main__':
    run_command_line(main)
