"""Show how time and memory of attention grow with the number of tokens.

Attention layers, and whole backbones, with random weights on random inputs.
"""

import argparse
import shlex
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.files import replacing

CONVENTION = """\
Time is the median of {runs} passes ({what}) that the kinds take
in turn, one image at a time; memory is the peak of a pass beyond weights and
inputs. The exponents are least squares of the logarithms over
n >= {fit_from:,}. A layer gets n tokens of {embed_dims} channels: heads
{num_heads}, anchors {num_anchors}. A backbone gets the image whose patches of
16 px are n tokens: AnchorFormer with 12 such layers, or ClusTR S, which starts
at 16 n tokens. Vanilla attention is torch's fused one. Left out (-) is what
the sizes before let expect to take more than {seconds:g} s or {gib:g} GiB a
pass; what took longer after all has fewer passes."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--tokens',
        nargs='+',
        type=int,
        default=[196, 1024, 4096, 16384, 65536],
        help='numbers of tokens',
    )
    parser.add_argument('--embed-dims', type=int, default=384, help='channels')
    parser.add_argument('--num-heads', type=int, default=6, help='heads')
    parser.add_argument('--num-anchors', type=int, default=30, help='anchors')
    kinds = ['anchor', 'query', 'vanilla', 'cluster', 'paper', 'plain']
    parser.add_argument(
        '--kinds',
        nargs='+',
        choices=kinds,
        default=kinds[:4],
        help='of attention: learned anchors, anchors among the queries, '
        "torch's fused attention, clusters; learned anchors in the order of "
        'the paper, and that written plainly',
    )
    parser.add_argument(
        '--part',
        choices=['layer', 'backbone', 'both'],
        default='both',
        help='what runs',
    )
    parser.add_argument(
        '--backward',
        action='store_true',
        help='forward and backward, in place of forward',
    )
    parser.add_argument(
        '--threads', type=int, default=1, help='threads on a CPU'
    )
    parser.add_argument('--device', default='cpu', help='cpu or one of CUDA')
    parser.add_argument(
        '--dtype', default='float32', help='of weights and inputs'
    )
    parser.add_argument(
        '--runs', type=int, default=3, help='timed passes of each'
    )
    parser.add_argument(
        '--max-seconds',
        type=float,
        default=60.0,
        help='a pass that is expected to take longer is left out',
    )
    parser.add_argument(
        '--max-gib',
        type=float,
        default=16.0,
        help='a pass that is expected to take more memory is left out',
    )
    parser.add_argument(
        '--json', type=Path, help='file for every figure, written as it goes'
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on from the file of --json, if it is there',
    )
    parser.add_argument('--out', type=Path, help='file for the tables')
    parser.add_argument('--out-picture', type=Path, help='file for a picture')
    return parser.parse_args()


def check_files(args: argparse.Namespace) -> None:
    """Find out before the work, not after it.

    Raises:
        UsageError: Something cannot be written, or there is nothing to
            resume from.
    """
    for name in ('json', 'out', 'out_picture'):
        path = getattr(args, name)
        if path is not None and path.is_dir():
            flag = f'--{name.replace("_", "-")}'
            raise UsageError(f'{flag} must be a file, got the folder {path}')
    if args.resume and args.json is None:
        raise UsageError('--resume needs --json, the file to go on from')
    if args.out_picture is not None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        kinds = FigureCanvasAgg.get_supported_filetypes()
        if args.out_picture.suffix[1:] not in kinds:
            raise UsageError(
                f'--out-picture must end in one of {sorted(kinds)}, got '
                f'{args.out_picture}'
            )


def main() -> None:
    args = parse_args()
    check_environment(['torch', 'mmengine', 'mmcv'])
    check_files(args)
    # Import what was just checked.
    from anchorformer_mm.analysis.machine import machine_line
    from anchorformer_mm.analysis.scaling import (
        FIT_FROM,
        Budget,
        measure_scaling,
    )
    from anchorformer_mm.analysis.scaling_networks import PARTS, Settings
    from anchorformer_mm.analysis.scaling_report import (
        draw_scaling,
        load_record,
        save_record,
        scaling_tables,
    )

    names = Settings.__dataclass_fields__
    settings = Settings(**{name: getattr(args, name) for name in names})
    budget = Budget(args.max_seconds, args.max_gib)
    hardware = machine_line(args.device)
    conditions = dict(
        command=shlex.join(sys.argv),
        hardware=hardware,
        runs=args.runs,
        **asdict(settings),
    )
    done, save = [], lambda cells: None
    if args.json is not None:
        if args.resume and args.json.exists():
            done = load_record(args.json, conditions)
        save = partial(save_record, conditions=conditions, path=args.json)
    progress = partial(print, file=sys.stderr, flush=True)
    progress(
        f'a pass that is expected to take more than {budget.seconds:g} s or '
        f'{budget.gib:g} GiB will be left out'
    )
    cells = measure_scaling(
        settings,
        parts=PARTS if args.part == 'both' else [args.part],
        kinds=args.kinds,
        tokens=args.tokens,
        budget=budget,
        runs=args.runs,
        done=done,
        save=save,
        progress=progress,
    )
    convention = CONVENTION.format(
        what='forward and backward' if args.backward else 'forward',
        fit_from=FIT_FROM,
        **asdict(budget),
        **conditions,
    )
    left_out = [f'- {c.label}: {c.reason}.' for c in cells if c.reason]
    hardware += f'; {args.dtype}'
    if args.device == 'cpu':
        hardware += f', threads: {args.threads}'
    text = '\n\n'.join([scaling_tables(cells), hardware, convention])
    if left_out:
        text += '\n\n' + '\n'.join(['Left out:', '', *left_out])
    print(text)
    if args.out is not None:
        with replacing(args.out) as path:
            path.write_text(f'{text}\n')
    if args.out_picture is not None:
        draw_scaling(cells, args.out_picture)


if __name__ == '__main__':
    run_command_line(main)
