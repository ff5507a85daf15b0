"""Show how time and memory of attention grow with the number of tokens.

Attention layers, and whole backbones, with random weights on random inputs.
The kinds of attention take turns, so that a disturbance of the machine meets
all alike. What would exceed the budget is left out, and says why.
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from textwrap import fill
from time import perf_counter

import numpy as np
import torch
from common import (
    Pass,
    a_count,
    a_device,
    a_file,
    argument_parser,
    machine_line,
    peak_memory,
    progress,
    write_json,
)
from torch import Tensor, nn

from anchorformer_mm.models.backbones.anchorformer import AnchorFormer
from anchorformer_mm.models.backbones.clustr import ClusTR
from anchorformer_mm.models.fusing import take_paper_order
from anchorformer_mm.models.layers import (
    AnchorAttention,
    ClusterAttention,
    QueryAnchorAttention,
    SelfAttention,
)
from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.files import replacing
from anchorformer_mm.utils.text import (
    markdown_table,
)

KINDS = ('anchor', 'query', 'vanilla', 'cluster', 'paper')
PARTS = ('layer', 'backbone')
DTYPES = ('float32', 'bfloat16', 'float16', 'float64')
PATCH = 16
# Exponents are fitted from here on: with few tokens the fixed costs count.
FIT_FROM = 1024
# Seconds. A first pass sets things up: a shorter one does not count.
LONG = 2.0
# Colours that also those tell apart who see no red or no green.
COLOURS = ('#0072b2', '#56b4e9', '#d55e00', '#009e73', '#cc79a7')
CONVENTION = """\
Time is the median of {runs} passes that the kinds take in turn, one image at
a time; memory is the peak of a pass beyond weights and inputs. The exponents
are least squares of the logarithms over n >= {fit_from:,}. A layer gets n
tokens of {embed_dims} channels: heads {num_heads}, anchors {num_anchors}. A
backbone gets the image whose patches of 16 px are n tokens: AnchorFormer with
12 such layers, or ClusTR S, which starts at 16 n tokens. Vanilla attention is
torch's fused one. Left out (-) is what the sizes before let expect to take
more than {max_seconds:g} s or {max_gib:g} GiB a pass."""


@dataclass
class Cell:
    """Figures of one kind of attention on so many tokens.

    Attributes:
        memory: Peak of a pass beyond weights and inputs, bytes.
        seconds: Time of each pass.
        reason: Why it was left out, if it was.
    """

    part: str
    kind: str
    tokens: int
    memory: int | None = None
    seconds: list[float] = field(default_factory=list)
    reason: str | None = None

    @property
    def label(self) -> str:
        return f'{self.part}, {self.kind}, {self.tokens:,} tokens'

    @property
    def milliseconds(self) -> float | None:
        """Median time of a pass; None if it was left out."""
        return 1e3 * median(self.seconds) if self.seconds else None

    @property
    def mebibytes(self) -> float | None:
        """Peak memory of a pass; None if it was left out."""
        if self.reason is not None or self.memory is None:
            return None
        return self.memory / 2**20


QUANTITIES = {'time (ms)': 'milliseconds', 'memory (MiB)': 'mebibytes'}


# What runs


def make_layer(args: argparse.Namespace, kind: str) -> nn.Module:
    sizes = args.embed_dims, args.num_heads
    if kind == 'vanilla':
        return SelfAttention(*sizes)
    if kind == 'cluster':
        return ClusterAttention(*sizes)
    if kind == 'query':
        return QueryAnchorAttention(*sizes, args.num_anchors)
    order = 'paper' if kind == 'paper' else 'auto'
    return AnchorAttention(*sizes, args.num_anchors, order=order)


def make_backbone(
    args: argparse.Namespace, kind: str, size: tuple[int, int]
) -> nn.Module:
    if kind == 'cluster':
        return ClusTR('small')
    model = AnchorFormer(
        # That of S, but for its width.
        dict(
            embed_dims=args.embed_dims,
            num_layers=12,
            num_heads=args.num_heads,
            feedforward_channels=4 * args.embed_dims,
        ),
        img_size=size,
        patch_size=PATCH,
        attention=kind if kind in ('query', 'vanilla') else 'learned',
        num_anchors=args.num_anchors,
        # Patches are then all tokens there are.
        with_cls_token=False,
        out_type='featmap',
    )
    if kind == 'paper':
        take_paper_order(model)
    return model


def start(args: argparse.Namespace, cell: Cell) -> Pass:
    """Make a pass of a cell ready; it leaves nothing behind.

    A layer gets tokens (1, n, D), a backbone the image whose patches are the
    squarest map of n tokens.
    """
    torch.manual_seed(0)
    height = math.isqrt(cell.tokens)
    while cell.tokens % height:
        height -= 1
    grid = height, cell.tokens // height
    if cell.part == 'layer':
        network, more = make_layer(args, cell.kind), (grid,)
        inputs = torch.randn(1, cell.tokens, args.embed_dims)
    else:
        size = tuple(PATCH * side for side in grid)
        network, more = make_backbone(args, cell.kind, size), ()
        inputs = torch.randn(1, 3, *size)
    target = dict(device=args.device, dtype=getattr(torch, args.dtype))
    network.eval()
    network.to(**target)
    # What is before a layer wants its gradient; images need none.
    inputs = inputs.to(**target).requires_grad_(
        args.backward and cell.part == 'layer'
    )

    def run() -> None:
        with torch.set_grad_enabled(args.backward):
            outputs = network(inputs, *more)
        if args.backward:
            # Gradient of half the sum of the squares.
            if isinstance(outputs, Tensor):
                outputs = (outputs,)
            torch.autograd.backward(outputs, [o.detach() for o in outputs])
            network.zero_grad(set_to_none=True)
            inputs.grad = None
        if inputs.is_cuda:
            torch.cuda.synchronize(inputs.device)

    return run


# Measuring


def refusal(
    before: Sequence[Cell], tokens: int, max_seconds: float, max_gib: float
) -> str | None:
    """Why a cell of so many tokens is left out; None if it is not.

    Judged by the cells of the same part and kind with fewer tokens.
    """
    if not before:
        return None
    last = before[-1]
    if last.reason is not None:
        return f'{last.tokens:,} tokens were left out'
    seconds = _expected(before, tokens, 'milliseconds') / 1e3
    if seconds > max_seconds:
        return f'expected to take {seconds:.0f} s, more than {max_seconds:g} s'
    gib = _expected(before, tokens, 'mebibytes') / 2**10
    if gib > max_gib:
        return f'expected to take {gib:.1f} GiB, more than {max_gib:g}'
    return None


def _expected(before: Sequence[Cell], tokens: int, quantity: str) -> float:
    """Go on as from the last size but one to the last.

    Linear at least and quadratic at most, quadratic where there is one size.
    """
    values = [getattr(cell, quantity) for cell in before[-2:]]
    last = before[-1]
    exponent = 2.0
    if len(values) > 1 and min(values) > 0:
        growth = math.log(values[1] / values[0])
        steps = math.log(last.tokens / before[-2].tokens)
        exponent = min(max(growth / steps, 1.0), 2.0)
    return values[-1] * (tokens / last.tokens) ** exponent


def measure_scaling(
    args: argparse.Namespace,
    done: Sequence[Cell] = (),
    save: Callable[[list[Cell]], None] = lambda cells: None,
) -> list[Cell]:
    """Measure kinds of attention over numbers of tokens.

    Args:
        args: Command line.
        done: Cells of an earlier run with these settings; what is complete
            is not measured again.
        save: Given all cells so far, after each.
    """
    known = {(c.part, c.kind, c.tokens): c for c in done if c.reason is None}
    cells: list[Cell] = []
    torch.set_num_threads(args.threads)
    parts = PARTS if args.part == 'both' else (args.part,)
    for part, tokens in product(parts, sorted(set(args.tokens))):
        group = []
        for kind in args.kinds:
            before = [c for c in cells if (c.part, c.kind) == (part, kind)]
            cell = known.get((part, kind, tokens)) or Cell(part, kind, tokens)
            if not cell.seconds:
                cell.reason = refusal(
                    before, tokens, args.max_seconds, args.max_gib
                )
                _take_memory(args, cell)
            group.append(cell)
            # Not yet timed ones are begun anew when resumed.
            save([*cells, *group])
        _take_times(args, group)
        cells += group
        save(cells)
    return cells


def _take_memory(args: argparse.Namespace, cell: Cell) -> None:
    if cell.reason is None and cell.memory is None:
        begin = partial(start, args, cell)
        try:
            cell.memory = peak_memory(begin, args.device, args.threads)
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            cell.reason = f'memory ran out ({type(error).__name__})'
    what = f'left out, {cell.reason}' if cell.reason else 'memory is taken'
    progress(f'{cell.label}: {what}')


def _take_times(args: argparse.Namespace, group: Sequence[Cell]) -> None:
    """Pass by pass, the cells in turn; after too long a pass there is none."""
    passes = [
        (cell, start(args, cell))
        for cell in group
        if cell.reason is None and not cell.seconds
    ]
    first = True
    while passes:
        for cell, run in passes:
            begin = perf_counter()
            run()
            seconds = perf_counter() - begin
            if not first or seconds >= LONG:
                cell.seconds.append(seconds)
                progress(f'{cell.label}: {1e3 * seconds:.1f} ms')
        first = False
        passes = [
            (cell, run)
            for cell, run in passes
            if len(cell.seconds) < args.runs
            and max(cell.seconds, default=0) <= args.max_seconds
        ]


# The report


def fit_exponent(cells: Sequence[Cell], quantity: str) -> float | None:
    """Exponent of the tokens: a line through the logarithms.

    Cells, of one part and kind, count from ``FIT_FROM`` tokens on.
    """
    points = [
        (cell.tokens, getattr(cell, quantity))
        for cell in cells
        if cell.tokens >= FIT_FROM and getattr(cell, quantity)
    ]
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def _groups(
    cells: Sequence[Cell],
) -> Iterator[tuple[str, str, dict[str, list[Cell]]]]:
    """Each part and quantity, with the cells of the part by their kinds."""
    for part in dict.fromkeys(cell.part for cell in cells):
        lines: dict[str, list[Cell]] = {}
        for cell in cells:
            if cell.part == part:
                lines.setdefault(cell.kind, []).append(cell)
        for title in QUANTITIES:
            yield part, title, lines


def scaling_tables(cells: Sequence[Cell]) -> str:
    """Write cells as tables of Markdown: a part and a quantity each."""
    tokens = sorted({cell.tokens for cell in cells})
    tables = []
    for part, title, lines in _groups(cells):
        quantity = QUANTITIES[title]
        rows = []
        for kind, line in lines.items():
            found = {c.tokens: getattr(c, quantity) for c in line}
            figures = [
                '-' if v is None else f'{v:,.{0 if v >= 1000 else 1}f}'
                for v in map(found.get, tokens)
            ]
            exponent = fit_exponent(line, quantity)
            end = '-' if exponent is None else f'{exponent:.2f}'
            rows.append([kind, *figures, end])
        header = [f'{part}, {title}', *(f'{n:,}' for n in tokens)]
        tables.append(markdown_table([*header, 'exponent'], rows))
    return '\n\n'.join(tables)


def draw_scaling(cells: Sequence[Cell], path: Path) -> None:
    """Draw time (left) and memory (right), both axes logarithmic."""
    from matplotlib.figure import Figure

    groups = list(_groups(cells))
    rows = len(groups) // len(QUANTITIES)
    figure = Figure(figsize=(10, 4.2 * rows), layout='constrained')
    panels = figure.subplots(rows, len(QUANTITIES), squeeze=False)
    ticks = sorted({cell.tokens for cell in cells})
    for axes, (part, title, lines) in zip(panels.flat, groups, strict=True):
        axes.set(xlabel='tokens n', ylabel=f'{title} of the {part}')
        axes.set_xscale('log', base=2)
        axes.set_yscale('log')
        for i, (kind, line) in enumerate(lines.items()):
            quantity = QUANTITIES[title]
            # What is drawn later is thinner, so that equal lines show.
            style = dict(
                color=COLOURS[KINDS.index(kind)], marker='os^Dv'[i], lw=5 - i
            )
            exponent = fit_exponent(line, quantity)
            end = '' if exponent is None else f': $n^{{{exponent:.2f}}}$'
            # What was left out is not drawn.
            values = [getattr(c, quantity) or np.nan for c in line]
            tokens = [c.tokens for c in line]
            axes.plot(tokens, values, label=kind + end, **style)
        axes.set_xticks(ticks, [f'{n:,}' for n in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def load_record(path: Path, conditions: dict) -> list[Cell]:
    """Read the cells of an earlier run under the same conditions.

    Raises:
        UsageError: They are others, but for the command, or the file is none
            of this kind.
    """
    try:
        record = json.loads(path.read_text())
        cells = [Cell(**cell) for cell in record.pop('cells')]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f'{path} is no record: {error}') from error
    for name, value in conditions.items():
        if name != 'command' and record.get(name) != value:
            raise UsageError(
                f'{path} was measured with {name} = {record.get(name)!r}, '
                f'not {value!r}'
            )
    return cells


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    add = parser.add_argument
    sizes = [196, 1024, 4096, 16384, 65536]
    add('--tokens', nargs='+', type=a_count, default=sizes, help='numbers')
    add('--embed-dims', type=a_count, default=384, help='channels')
    add('--num-heads', type=a_count, default=6, help='heads')
    add('--num-anchors', type=a_count, default=30, help='anchors')
    add(
        '--kinds',
        nargs='+',
        choices=KINDS,
        default=KINDS[:4],
        help='of attention: learned anchors, anchors among the queries, '
        "torch's fused attention, clusters, learned anchors in the order of "
        'the paper',
    )
    add('--part', choices=[*PARTS, 'both'], default='both', help='what runs')
    add('--backward', action='store_true', help='forward and backward')
    add('--threads', type=a_count, default=1, help='threads on a CPU')
    add('--device', type=a_device, default='cpu', help='cpu or one of CUDA')
    add('--dtype', choices=DTYPES, default=DTYPES[0], help='of all numbers')
    add('--runs', type=a_count, default=3, help='timed passes of each')
    budget = 'a pass that is expected to take more is left out'
    add('--max-seconds', type=float, default=60.0, help=budget)
    add('--max-gib', type=float, default=16.0, help=budget)
    add('--json', type=a_file, help='file for all figures, as it goes')
    add('--resume', action='store_true', help='go on from the file of --json')
    add('--out-picture', type=a_file, help='file for a picture')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.resume and args.json is None:
        raise UsageError('--resume needs --json, the file to go on from')
    names = 'runs embed_dims num_heads num_anchors backward threads device'
    conditions = dict(
        command=shlex.join(sys.argv if argv is None else argv),
        hardware=machine_line(args.device),
        **{name: getattr(args, name) for name in (*names.split(), 'dtype')},
    )
    done = []
    if args.resume and args.json.exists():
        done = load_record(args.json, conditions)

    def save(cells: list[Cell]) -> None:
        if args.json is not None:
            record = dict(conditions, cells=[asdict(c) for c in cells])
            write_json(record, args.json)

    cells = measure_scaling(args, done, save)
    hardware = f'{conditions["hardware"]}; {args.dtype}'
    if args.device == 'cpu':
        hardware += f', threads: {args.threads}'
    hardware += ', forward and backward' if args.backward else ', forward'
    convention = CONVENTION.format(fit_from=FIT_FROM, **vars(args))
    print('\n\n'.join([scaling_tables(cells), hardware, fill(convention, 79)]))
    left_out = [f'- {c.label}: {c.reason}.' for c in cells if c.reason]
    if left_out:
        print('\nLeft out:\n\n' + '\n'.join(left_out))
    if args.out_picture is not None:
        draw_scaling(cells, args.out_picture)


if __name__ == '__main__':
    run_command_line(main)
