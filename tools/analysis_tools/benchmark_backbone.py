"""Compare memory and time of the backbones of configs, with random weights.

The first config is the one that ratios refer to.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.files import replacing

CONVENTION = (
    'Memory is the peak of a forward pass beyond weights and images, latency\n'
    'the median of {} passes in turn, after one that is not timed. Attention\n'
    'auto is the kernel that torch chooses, math the plain products. Ratios\n'
    'are to the first row of the same size.'
)


def parse_args() -> argparse.Namespace:
    # Imports what was just checked.
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', help='config files')
    parser.add_argument(
        '--shapes',
        required=True,
        nargs='+',
        metavar='HxW',
        help='heights and widths of the images, px, such as 512x2048',
    )
    parser.add_argument(
        '--device', default='cpu', help='cpu (default) or one of CUDA'
    )
    parser.add_argument(
        '--threads',
        type=int,
        help="threads on a CPU (default: torch's, which are printed)",
    )
    parser.add_argument(
        '--batch-size', type=int, default=1, help='images of a pass'
    )
    parser.add_argument(
        '--repeats', type=int, default=5, help='timed passes (default: 5)'
    )
    parser.add_argument(
        '--sdpa',
        choices=['both', 'auto', 'math'],
        default='both',
        help="how torch's fused attention runs: as it chooses (auto), as "
        'plain products (math), or, by default, one after the other',
    )
    parser.add_argument('--out', type=Path, help='file for the table')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='overrides of every config, as key=value pairs',
    )
    parser.set_defaults(launcher='none', local_rank=0, work_dir=None)
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


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    args = parse_args()
    shapes = [parse_shape(text) for text in args.shapes]
    if args.out is not None and args.out.is_dir():
        raise UsageError(f'--out must be a file, got the folder {args.out}')
    # Import what was just checked.
    import torch

    from anchorformer_mm.analysis.benchmark import (
        benchmark_table,
        hardware_line,
        measure,
    )
    from anchorformer_mm.analysis.complexity import build_from_config
    from anchorformer_mm.analysis.forward_pass import ATTENTION, Conditions
    from anchorformer_mm.engine.launch import load_config

    builds = {}
    for path in args.configs:
        args.config = path
        name = Path(path).stem
        if name in builds:
            raise UsageError(f'several configs are named {name}')
        cfg = load_config(args, [])
        builds[name] = partial(build_from_config, cfg, backbone_only=True)
    threads = torch.get_num_threads()
    if args.threads is not None:
        threads = args.threads
    conditions = [
        Conditions(shape, args.batch_size, args.device, threads)
        for shape in shapes
    ]
    results = [
        result
        for each in conditions
        for result in measure(
            builds,
            each,
            attention=ATTENTION if args.sdpa == 'both' else (args.sdpa,),
            repeats=args.repeats,
            progress=partial(print, file=sys.stderr, flush=True),
        )
    ]
    text = '\n\n'.join(
        [
            benchmark_table(results),
            hardware_line(conditions[0]),
            CONVENTION.format(args.repeats),
        ]
    )
    print(text)
    if args.out is not None:
        with replacing(args.out) as path:
            path.write_text(f'{text}\n')


if __name__ == '__main__':
    run_command_line(main)
