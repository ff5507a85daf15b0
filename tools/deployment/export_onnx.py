"""Write the trained model of a config as an ONNX file, and check the file.

It takes RGB images, float32 from 0 to 255, of shape (N, 3, H, W), or
normalised ones. What comes before and what comes out is in its metadata.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.files import replacing

tell = partial(print, file=sys.stderr, flush=True)


def parse_args() -> argparse.Namespace:
    # Imports what was just checked.
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        'config',
        help='config file, or one of a library, such as '
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    )
    weights = 'trained weights; without them the weights are random'
    add('checkpoint', nargs='?', help=weights)
    add('--out', required=True, type=Path, help='ONNX file to write')
    add(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='height and width of the images, px (default: what the test '
        'pipeline makes)',
    )
    batch = 'images of a batch (default: 1)'
    add('--batch-size', type=int, default=1, help=batch)
    dynamic = 'leave batch, height and width open'
    add('--dynamic', action='store_true', help=dynamic)
    with_nms = "let a detector's file end in its NMS"
    ends = parser.add_mutually_exclusive_group()
    ends.add_argument('--with-nms', action='store_true', help=with_nms)
    ends.add_argument(
        '--raw',
        action='store_true',
        help="let a PicoDet's file end in the maps of its head, for chips and "
        "tools that cannot decode: of each stride the classes' scores from 0 "
        'to 1, (N, C, h, w), and the logits of the bins of the distances to '
        'the four sides, (N, 4 * bins, h, w)',
    )
    add(
        '--normalisation',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='normalise inside of the file; without, its input is normalised '
        'as its metadata tell',
    )
    add(
        '--images',
        nargs='+',
        metavar='FILE',
        help='images to check the file with (default: two photographs that '
        'scikit-learn has)',
    )
    add(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='overrides of the config, as key=value pairs',
    )
    args = parser.parse_args()
    if args.out.suffix != '.onnx' or args.out.is_dir():
        raise UsageError(f'--out must be a file *.onnx, got {args.out}')
    for flag, sizes in (
        ('--shape', args.shape or [1]),
        ('--batch-size', [args.batch_size]),
    ):
        if min(sizes) < 1:
            raise UsageError(f'{flag} must be >= 1, got {min(sizes)}')
    if args.dynamic and args.batch_size != 1:
        raise UsageError('--batch-size has no meaning with --dynamic')
    return args


def describe(path: Path, name: Path) -> str:
    """List what a file holds, in lines."""
    from collections import Counter

    import onnx

    model = onnx.load(path)
    operators = Counter(node.op_type for node in model.graph.node)
    lines = [
        f'{name}: {path.stat().st_size / 1e6:.2f} MB, '
        f'{operators.total()} nodes, opset {model.opset_import[0].version}'
    ]
    for kind in ('input', 'output'):
        for value in getattr(model.graph, kind):
            tensor = value.type.tensor_type
            shape = ', '.join(
                d.dim_param or str(d.dim_value) for d in tensor.shape.dim
            )
            dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
            lines.append(f'{kind} {value.name}: {dtype} ({shape})')
    counts = ', '.join(f'{op} {n}' for op, n in sorted(operators.items()))
    return '\n'.join([*lines, f'operators: {counts}'])


def main() -> None:
    libraries = ['torch', 'mmengine', 'mmcv', 'onnx', 'onnxslim']
    check_environment([*libraries, 'onnxruntime'])
    args = parse_args()
    # Import what was just checked.
    from sklearn.datasets import load_sample_images

    from anchorformer_mm.apis import (
        build_model,
        load_model,
        prepare_image,
        read_config,
    )
    from anchorformer_mm.deployment.export import (
        batch_of,
        check_file,
        export_model,
        properties_of,
    )
    from anchorformer_mm.deployment.preprocessing import preprocessing_of

    cfg = read_config(args.config, args.cfg_options)
    if args.checkpoint is None:
        tell('no checkpoint: the weights are random')
        model = build_model(cfg)
    else:
        model = load_model(cfg, args.checkpoint)
    steps = preprocessing_of(cfg, model.data_preprocessor)
    shape = tuple(args.shape) if args.shape else steps.shape
    if shape is None and not args.dynamic:
        raise UsageError(
            'the test pipeline makes images of different sizes: choose one '
            'with --shape H W, or leave it open with --dynamic'
        )
    if not args.dynamic:
        steps = steps.fixed_to(shape)
    if not args.normalisation:
        steps.normalise_as(model.data_preprocessor)
    if (cfg.model.get('test_cfg') or {}).get('mode') == 'slide':
        tell(
            "test_cfg.mode of the config is 'slide': the file takes the "
            'image as a whole'
        )
    for remark in steps.remarks:
        tell(remark)

    options = dict(
        with_nms=args.with_nms,
        raw=args.raw,
        stretch_contrast=steps.stretch_contrast,
        normalise=args.normalisation,
    )
    paths = args.images or load_sample_images().filenames
    images = [prepare_image(cfg, model, path).pixels for path in paths]
    conditions = [(shape, args.batch_size)]
    if args.dynamic:
        height, width = shape or (256, 320)
        conditions = [((height, width), 1), ((height + 64, width + 32), 2)]
    with replacing(args.out) as path:
        tell('writing')
        export_model(
            model,
            path,
            shape=conditions[0][0],
            batch_size=args.batch_size,
            dynamic=args.dynamic,
            metadata=properties_of(cfg, model, steps),
            **options,
        )
        tell('comparing with the model')
        difference = check_file(
            model,
            path,
            [batch_of(images, *condition) for condition in conditions],
            **options,
        )
        text = describe(path, args.out)
    print(text)
    print(
        f'difference from the model: {difference:.1e}, the largest absolute '
        'one over the largest absolute value'
    )


if __name__ == '__main__':
    run_command_line(main)
