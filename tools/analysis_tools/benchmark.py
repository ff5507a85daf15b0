"""Compare time and memory of the models of configs, side by side.

The first row of each size and number of threads is what ratios refer to.
Weights are random where there are no checkpoints.
"""

import argparse
import json
import shlex
import sys
from functools import partial
from pathlib import Path

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.files import replacing

CONVENTION = """\
Time is that of {runs} passes which all rows of a size and number of threads
take in turn, after {warm_up} that do not count, on {images}. Memory is the
peak of a pass beyond weights and images, on a CPU in a process of its own
(in ONNX Runtime without its arena, which keeps what it took). Attention auto
is the kernel that torch chooses, math the plain products. A model runs from
pixels to boxes with scores of all priors, logits or probabilities; NMS,
resizing of images and reading of files are left out unless the table says so.
Ratios are to the first row of the same size and threads."""


def parse_args() -> argparse.Namespace:
    # Imports what was just checked.
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'configs',
        nargs='+',
        help="config files, or a library's own as "
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py; or ONNX files',
    )
    parser.add_argument(
        '--shapes',
        required=True,
        nargs='+',
        metavar='HxW',
        help='heights and widths of the images, px, such as 512x2048',
    )
    parser.add_argument(
        '--part',
        choices=['model', 'backbone'],
        default='model',
        help='what runs: the model as it is deployed (default; of models '
        'that cannot be, up to the raw outputs), or its backbone alone',
    )
    parser.add_argument(
        '--runtimes',
        nargs='+',
        choices=['eager', 'compile', 'onnx'],
        default=['eager'],
        help='torch as it is (default), torch.compile, ONNX Runtime',
    )
    parser.add_argument(
        '--with-nms',
        action='store_true',
        help='let the ONNX file of a detector end in its NMS',
    )
    parser.add_argument(
        '--checkpoints',
        nargs='+',
        metavar='FILE',
        help='weights, one file for each config',
    )
    parser.add_argument(
        '--batch-size', type=int, default=1, help='images of a pass'
    )
    parser.add_argument(
        '--threads',
        nargs='+',
        type=int,
        help="threads on a CPU, one number or several (default: torch's, "
        'which are printed)',
    )
    parser.add_argument(
        '--device', default='cpu', help='cpu (default) or one of CUDA'
    )
    parser.add_argument(
        '--warm-up',
        type=int,
        default=3,
        help='passes before those that count (default: 3)',
    )
    parser.add_argument(
        '--runs', type=int, default=10, help='timed passes (default: 10)'
    )
    parser.add_argument(
        '--sdpa',
        choices=['both', 'auto', 'math'],
        default='both',
        help="how torch's fused attention runs in eager: as it chooses "
        '(auto), as plain products (math), or, by default, one after the '
        'other',
    )
    parser.add_argument(
        '--image', help='picture in place of noise, resized to each size'
    )
    parser.add_argument('--json', type=Path, help='file for every figure')
    parser.add_argument('--out', type=Path, help='file for the table')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='overrides of every config, as key=value pairs',
    )
    return parser.parse_args()


def parse_shape(text: str) -> tuple[int, int]:
    """Read a height and a width.

    Raises:
        UsageError: These are not.
    """
    numbers = text.lower().split('x')
    if len(numbers) != 2 or not all(n.isdecimal() for n in numbers):
        raise UsageError(
            '--shapes must be a height and a width each, such as 512x2048; '
            f'got {text}'
        )
    return int(numbers[0]), int(numbers[1])


def check_args(args: argparse.Namespace) -> None:
    """Find out before the work what does not go together.

    Raises:
        UsageError: Something does not.
    """
    for name in ('json', 'out'):
        path = getattr(args, name)
        if path is not None and path.is_dir():
            raise UsageError(f'--{name} must be a file, got the folder {path}')
    if args.with_nms and (args.runtimes != ['onnx'] or args.part != 'model'):
        raise UsageError(
            '--with-nms needs --runtimes onnx alone and --part model: '
            'elsewhere there is no NMS in the network; got '
            f'--runtimes {" ".join(args.runtimes)} --part {args.part}'
        )
    if args.part == 'backbone' and 'onnx' in args.runtimes:
        raise UsageError(
            '--runtimes onnx needs --part model: ONNX files hold whole models'
        )
    files = [c for c in args.configs if Path(c).suffix == '.onnx']
    if files and (args.runtimes != ['onnx'] or args.checkpoints):
        raise UsageError(
            f'{files[0]} runs in ONNX Runtime alone, as it is: it needs '
            '--runtimes onnx and no --checkpoints'
        )
    if args.checkpoints and len(args.checkpoints) != len(args.configs):
        raise UsageError(
            f'--checkpoints must be one file for each of the '
            f'{len(args.configs)} configs, got {len(args.checkpoints)}'
        )


def versions() -> dict[str, str]:
    """Of what took part, as far as it is installed."""
    from importlib.metadata import PackageNotFoundError, version

    from anchorformer_mm.utils.environment import LIBRARIES

    found = {}
    names = [
        n for lib in LIBRARIES.values() for n in (*lib.originals, lib.fork)
    ]
    for name in (*names, 'anchorformer-mm', 'onnx', 'onnxruntime'):
        try:
            found[name] = version(name or '')
        except (PackageNotFoundError, ValueError):
            continue
    return found


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    args = parse_args()
    shapes = [parse_shape(text) for text in args.shapes]
    check_args(args)
    # Import what was just checked.
    import torch

    from anchorformer_mm.analysis.benchmark import measure
    from anchorformer_mm.analysis.benchmark_networks import (
        candidate_of,
        candidate_of_file,
    )
    from anchorformer_mm.analysis.benchmark_report import (
        benchmark_table,
        compile_times,
        record,
    )
    from anchorformer_mm.analysis.config_models import read_config
    from anchorformer_mm.analysis.forward_pass import (
        ATTENTION,
        Conditions,
        require_device,
    )
    from anchorformer_mm.analysis.machine import machine_line
    from anchorformer_mm.analysis.runtimes import require_provider

    require_device(args.device)
    threads = args.threads or [torch.get_num_threads()]
    if torch.device(args.device).type != 'cpu':
        # They have no part in it.
        threads = threads[:1]
    conditions = [
        Conditions(
            shape, args.batch_size, args.device, count, image=args.image
        )
        for shape in shapes
        for count in threads
    ]
    if 'onnx' in args.runtimes:
        require_provider(conditions[0])
    progress = partial(print, file=sys.stderr, flush=True)
    candidates = {}
    for i, config in enumerate(args.configs):
        name = Path(config).stem
        if name in candidates:
            raise UsageError(f'several configs are named {name}')
        if Path(config).suffix == '.onnx':
            candidates[name] = candidate_of_file(name, config)
            continue
        candidates[name] = candidate_of(
            name,
            read_config(config, args.cfg_options),
            part=args.part,
            checkpoint=args.checkpoints[i] if args.checkpoints else None,
            with_nms=args.with_nms,
            progress=progress,
        )
    results = measure(
        list(candidates.values()),
        conditions,
        runtimes=list(dict.fromkeys(args.runtimes)),
        attention=ATTENTION if args.sdpa == 'both' else (args.sdpa,),
        warm_up=args.warm_up,
        runs=args.runs,
        progress=progress,
    )
    hardware = (
        f'{machine_line(args.device)}; float32, images at a time: '
        f'{args.batch_size}'
    )
    convention = CONVENTION.format(
        runs=args.runs,
        warm_up=args.warm_up,
        images='noise' if args.image is None else Path(args.image).name,
    )
    parts = [benchmark_table(results), compile_times(results)]
    text = '\n\n'.join(filter(None, [*parts, hardware, convention]))
    print(text)
    if args.out is not None:
        with replacing(args.out) as path:
            path.write_text(f'{text}\n')
    if args.json is not None:
        figures = dict(
            command=shlex.join(sys.argv),
            hardware=hardware,
            versions=versions(),
            configs=args.configs,
            cfg_options=args.cfg_options or {},
            checkpoints=args.checkpoints or [],
            with_nms=args.with_nms,
            warm_up=args.warm_up,
            results=record(results),
        )
        with replacing(args.json) as path:
            path.write_text(json.dumps(figures, indent=2) + '\n')


if __name__ == '__main__':
    run_command_line(main)
