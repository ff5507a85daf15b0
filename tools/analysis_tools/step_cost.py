"""Show where the time of a training step of a config goes.

The step is the config's own: loader, model with random weights, optimiser.
"""

import argparse
import json
import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.files import replacing

if TYPE_CHECKING:
    from mmengine.config import Config

    from anchorformer_mm.analysis.step_cost import StepCost

CONVENTION = (
    'Medians of {steps} steps, after {warm_up} that are not timed. What the\n'
    'model does beyond its backbone, neck and head is assignment and loss;\n'
    'data is the wait for the loader. The loader alone, {num_workers} '
    'workers: {loader:.1f} ms a batch.'
)


def parse_args() -> argparse.Namespace:
    # Imports what was just checked.
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--batch-size', type=int, default=16, help='images of a step'
    )
    parser.add_argument(
        '--size', type=int, default=320, help='side of the images, px'
    )
    parser.add_argument(
        '--steps', type=int, default=20, help='timed steps (default: 20)'
    )
    parser.add_argument(
        '--warm-up',
        type=int,
        default=5,
        help='steps before these (default: 5); a detector that has learned '
        'something assigns more',
    )
    parser.add_argument(
        '--threads',
        type=int,
        default=2,
        help='threads on a CPU, beside the workers (default: 2)',
    )
    parser.add_argument(
        '--num-workers',
        type=int,
        default=2,
        help='processes of the loader (default: 2)',
    )
    parser.add_argument(
        '--synthetic',
        action='store_true',
        help='train on random images of 640 x 480 px with boxes of the '
        'number and sizes of COCO, in place of the data of the config',
    )
    parser.add_argument(
        '--device', default='cpu', help='cpu (default) or one of CUDA'
    )
    parser.add_argument('--out', type=Path, help='file for the figures, JSON')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='overrides of the config, as key=value pairs',
    )
    parser.set_defaults(launcher='none', local_rank=0, work_dir=None)
    return parser.parse_args()


def prepare(args: argparse.Namespace, folder: Path) -> 'Config':
    """Read the config and check, or write, its training data.

    Raises:
        UsageError: The config does not train, or its data is not there.
    """
    from anchorformer_mm.analysis.step_setup import (
        fix_size,
        use_synthetic_coco,
    )
    from anchorformer_mm.engine.launch import load_config
    from anchorformer_mm.utils.dataset_paths import require_datasets

    cfg = load_config(args, [])
    for name in ('model', 'train_dataloader', 'optim_wrapper'):
        if cfg.get(name) is None:
            raise UsageError(f'{args.config} has no {name}')
    fix_size(cfg, args.size)
    if args.synthetic:
        use_synthetic_coco(cfg, folder)
    else:
        require_datasets(cfg, ['train'])
    return cfg


def measure(
    cfg: 'Config', args: argparse.Namespace
) -> tuple['StepCost', float]:
    """Train what a config describes.

    Returns:
        The cost of a step, and the seconds a batch of the loader alone.
    """
    import torch
    from mmengine.logging import MMLogger
    from mmengine.utils.dl_utils import set_multi_processing

    from anchorformer_mm.analysis.step_cost import (
        measure_loader,
        measure_steps,
    )
    from anchorformer_mm.analysis.step_setup import (
        build_loader,
        build_model,
        build_optimiser,
    )

    # It tells of every parameter, when it initialises and optimises it.
    MMLogger.get_instance('mmengine').setLevel('WARNING')
    set_multi_processing(**cfg.get('env_cfg', {}).get('mp_cfg', {}))
    torch.set_num_threads(args.threads)
    progress = partial(print, file=sys.stderr, flush=True)
    model = build_model(cfg, args.device)
    optimiser = build_optimiser(cfg, model, args.batch_size)
    batches = iter(build_loader(cfg, args.batch_size, args.num_workers))
    # The workers hold up to two batches each.
    loader = measure_loader(
        batches, skip=2 * args.num_workers + 1, count=args.steps
    )
    progress(f'the loader alone: {1e3 * loader:.1f} ms a batch')
    cost = measure_steps(
        model,
        optimiser,
        batches,
        steps=args.steps,
        warm_up=args.warm_up,
        progress=progress,
    )
    return cost, loader


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    args = parse_args()
    if args.out is not None and args.out.is_dir():
        raise UsageError(f'--out must be a file, got the folder {args.out}')
    for name, least in (('num_workers', 0), ('steps', 1), ('warm_up', 0)):
        value = getattr(args, name)
        if value < least:
            raise UsageError(f'{name} must be >= {least}, got {value}')
    # Import what was just checked.
    from anchorformer_mm.analysis.benchmark import hardware_line
    from anchorformer_mm.analysis.forward_pass import Conditions
    from anchorformer_mm.analysis.step_cost import step_table

    conditions = Conditions(
        (args.size, args.size), args.batch_size, args.device, args.threads
    )
    # pycocotools prints that it reads the annotations.
    with TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        cfg = prepare(args, Path(folder) / 'coco')
        cost, loader = measure(cfg, args)
    hardware = hardware_line(conditions)
    convention = CONVENTION.format(
        steps=args.steps,
        warm_up=args.warm_up,
        num_workers=args.num_workers,
        loader=1e3 * loader,
    )
    print('\n\n'.join([step_table(cost), hardware, convention]))
    if args.out is None:
        return
    figures = dict(
        config=args.config,
        synthetic=args.synthetic,
        size=args.size,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        warm_up=args.warm_up,
        hardware=hardware,
        loader_seconds=loader,
        step_seconds=cost.total,
        parts={
            part: dict(
                median=cost.median(part), share=cost.share(part), all=seconds
            )
            for part, seconds in cost.seconds.items()
        },
    )
    with replacing(args.out) as path:
        path.write_text(json.dumps(figures, indent=2) + '\n')


if __name__ == '__main__':
    run_command_line(main)
