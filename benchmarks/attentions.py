"""Compare attentions: cost over the number of tokens, accuracy on digits.

cost: time, memory, parameters and operations of layers and whole backbones,
with random weights on random inputs. Kinds take turns, so that a disturbance
of the machine meets all alike.

accuracy: small models on the digits, trained by tools/train.py, first with
the same settings to choose from, on a fifth of the training images that are
held out, then with seeds. What is in the results is not run again, and several
processes may share a work folder. table: what it has found so far.
"""

import argparse
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from io import BytesIO
from itertools import product
from pathlib import Path
from statistics import mean, median, stdev
from textwrap import fill
from time import perf_counter, sleep
from typing import NamedTuple

import numpy as np
import torch
from common import (
    ROOT,
    Pass,
    a_count,
    a_device,
    a_file,
    argument_parser,
    machine_line,
    on_cpu,
    peak_memory,
    progress,
)
from mmengine.config import Config
from torch import Tensor, nn

from anchorformer_mm.analysis.complexity import count_complexity
from anchorformer_mm.analysis.pictures import read_run
from anchorformer_mm.apis import build_model, read_config
from anchorformer_mm.deployment.export import OPSET
from anchorformer_mm.deployment.networks import SizesFollowed, make_traceable
from anchorformer_mm.models.backbones.anchorformer import AnchorFormer
from anchorformer_mm.models.backbones.clustr import ClusTR
from anchorformer_mm.models.fusing import fuse
from anchorformer_mm.models.layers import ClusterAttention, build_attention
from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.files import replacing
from anchorformer_mm.utils.text import markdown_table

# Kinds by name: `attention` and `attn_cfg` of an AnchorFormer.
UNTIED = dict(tied=False, logits='standardized', logit_scale=2.0)
PEERS = 'query vanilla agent linear focused castling paca pool'
ATTENTIONS = {
    'anchor': ('learned', dict(anchor_std=3.0)),
    'untied': ('learned', dict(UNTIED, anchor_std=1.0)),
    **{name: (name, {}) for name in PEERS.split()},
}
# Of these the cost alone is another: the paper's order, and ClusTR's clusters.
KINDS = dict(ATTENTIONS, paper=('learned', dict(order='paper')), cluster=None)
# A task's config, its figure, and the unit of that in percent.
TASKS = {
    'classes': ('anchorformer_t_digits', 'accuracy/top1', 1),
    'maps': ('semfpn_anchorformer_t_digits', 'mIoU', 1),
    'boxes': ('picodet_anchorformer_t_digits', 'coco/bbox_mAP', 100),
}
RESULTS = 'results.jsonl'
PARTS = ('layer', 'backbone')
DTYPES = ('float32', 'bfloat16', 'float16', 'float64')
PATCH = 16
# Exponents are fitted from here on: with few tokens the fixed costs count.
FIT_FROM = 1024
# Seconds. A first pass sets things up: a shorter one does not count.
LONG = 2.0
# Colours that also those tell apart who see no red or no green.
COLOURS = ('#0072b2', '#56b4e9', '#d55e00', '#009e73', '#cc79a7', '#666666')
MARKERS = 'os^Dv<>phX*P'
CONVENTION = """\
Time is the median of {runs} passes that the kinds take in turn, one image at
a time; memory is the peak of a pass beyond weights and inputs. The exponents
are least squares of the logarithms over n >= {fit_from:,}. A layer gets n
tokens of {embed_dims} channels: heads {num_heads}, anchors {num_anchors}. A
backbone gets the image whose patches of 16 px are n tokens: AnchorFormer with
12 such layers, or ClusTR S, which starts at 16 n tokens. Vanilla attention is
torch's fused one; ONNX Runtime has anchors folded. MACs are those of the
cheaper order. Left out (-) is what the sizes before let expect to take
more than {max_seconds:g} s or {max_gib:g} GiB a pass."""


@dataclass
class Cell:
    """Figures of one kind of attention on so many tokens.

    Attributes:
        macs: Multiply-accumulates of a forward pass.
        memory: Peak of a pass beyond weights and inputs, bytes.
        seconds: Time of each pass.
        reason: Why it was left out, if it was.
    """

    part: str
    kind: str
    tokens: int
    runtime: str = 'eager'
    params: int | None = None
    macs: int | None = None
    memory: int | None = None
    seconds: list[float] = field(default_factory=list)
    reason: str | None = None

    @property
    def row(self) -> str:
        return self.kind + (', ONNX' if self.runtime == 'onnx' else '')

    @property
    def label(self) -> str:
        return f'{self.part}, {self.row}, {self.tokens:,} tokens'

    def figure(self, title: str) -> float | None:
        """One of ``QUANTITIES``; None where it was not measured."""
        name, unit = QUANTITIES[title]
        value = getattr(self, name)
        if isinstance(value, list):
            value = median(value) if value else None
        return None if value is None else value / unit


# Their attributes and units. The first two are drawn.
QUANTITIES = {
    'time (ms)': ('seconds', 1e-3),
    'memory (MiB)': ('memory', 2**20),
    'MACs (G)': ('macs', 1e9),
    'parameters (M)': ('params', 1e6),
}


def append_line(path: Path, record: Mapping) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as file:
        file.write(json.dumps(record) + '\n')


def read_lines(path: Path, names: Sequence[str]) -> list[list]:
    """Read these of each record of a file that may not be there yet."""
    try:
        text = path.read_text() if path.exists() else ''
        records = [json.loads(line) for line in text.splitlines()]
        return [[record[name] for name in names] for record in records]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f'{path} has no records: {error}') from error


# Cost


class OnMap(nn.Module):
    """A layer on a map of tokens (1, n, D), or of an image's pixels."""

    def __init__(self, layer: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.layer, self.grid = layer, grid

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            # Operations are counted on images.
            tokens = x[:, :1].flatten(2).transpose(1, 2)
            x = tokens.expand(-1, -1, self.layer.embed_dims)
        return self.layer(x, self.grid)


def make_network(
    args: argparse.Namespace, cell: Cell
) -> tuple[nn.Module, tuple[int, int]]:
    """Make what a cell measures, and its map: the squarest of n tokens."""
    height = math.isqrt(cell.tokens)
    while cell.tokens % height:
        height -= 1
    grid = height, cell.tokens // height
    sizes = args.embed_dims, args.num_heads
    if cell.kind == 'cluster':
        if cell.part == 'backbone':
            return ClusTR('small'), grid
        return OnMap(ClusterAttention(*sizes), grid), grid
    attention, attn_cfg = KINDS[cell.kind]
    if cell.part == 'layer':
        layer = build_attention(
            attention, *sizes, args.num_anchors, **attn_cfg
        )
        return OnMap(layer, grid), grid
    model = AnchorFormer(
        # That of S, but for its width.
        dict(
            embed_dims=args.embed_dims,
            num_layers=12,
            num_heads=args.num_heads,
            feedforward_channels=4 * args.embed_dims,
        ),
        img_size=[PATCH * side for side in grid],
        patch_size=PATCH,
        attention=attention,
        num_anchors=args.num_anchors,
        attn_cfg=attn_cfg,
        # Patches are then all tokens there are.
        with_cls_token=False,
        out_type='featmap',
    )
    return model, grid


def start(args: argparse.Namespace, cell: Cell, arena: bool = True) -> Pass:
    """Make a pass of a cell ready; it leaves nothing behind.

    A layer gets tokens (1, n, D), a backbone an image. The arena of ONNX
    Runtime keeps memory that was taken.
    """
    torch.manual_seed(0)
    network, grid = make_network(args, cell)
    if cell.part == 'layer':
        inputs = torch.randn(1, cell.tokens, args.embed_dims)
    else:
        inputs = torch.randn(1, 3, *(PATCH * side for side in grid))
    network.eval()
    if cell.runtime == 'onnx':
        return _start_onnx(network, inputs, args.threads, arena)
    target = dict(device=args.device, dtype=getattr(torch, args.dtype))
    network.to(**target)
    # What is before a layer wants its gradient; images need none.
    inputs = inputs.to(**target).requires_grad_(
        args.backward and cell.part == 'layer'
    )

    def run() -> None:
        with torch.set_grad_enabled(args.backward):
            outputs = network(inputs)
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


def _start_onnx(
    network: nn.Module, inputs: Tensor, threads: int, arena: bool
) -> Pass:
    import onnxruntime

    network = fuse(network)
    make_traceable(network, dynamic=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = arena
    # Its threads would go on after a pass, and disturb that of another.
    options.add_session_config_entry('session.force_spinning_stop', '1')
    file = BytesIO()
    with warnings.catch_warnings(), torch.no_grad(), SizesFollowed(fixed=True):
        # On sizes that are fixed in the trace.
        warnings.simplefilter('ignore')
        torch.onnx.export(
            network, (inputs,), file, opset_version=OPSET, dynamo=False
        )
    session = onnxruntime.InferenceSession(file.getvalue(), options)
    feed = {session.get_inputs()[0].name: inputs.numpy()}
    return partial(session.run, None, feed)


def refusal(
    before: Sequence[Cell], tokens: int, max_seconds: float, max_gib: float
) -> str | None:
    """Why a cell of so many tokens is left out; None if it is not.

    Judged by the cells of the same part and row with fewer tokens: it goes on
    as from the last size but one to the last, linearly at least and
    quadratically at most, quadratically where there is one size.
    """
    if not before:
        return None
    last = before[-1]
    if last.reason is not None:
        return f'{last.tokens:,} tokens were left out'
    for title, unit, limit, name in (
        ('time (ms)', 1e3, max_seconds, 's'),
        ('memory (MiB)', 2**10, max_gib, 'GiB'),
    ):
        values = [cell.figure(title) / unit for cell in before[-2:]]
        exponent = 2.0
        if len(values) > 1 and min(values) > 0:
            steps = math.log(last.tokens / before[-2].tokens)
            growth = math.log(values[1] / values[0]) / steps
            exponent = min(max(growth, 1.0), 2.0)
        value = values[-1] * (tokens / last.tokens) ** exponent
        if value > limit:
            return f'expected to take {value:.1f} {name}, more than {limit:g}'
    return None


def measure_cost(
    args: argparse.Namespace,
    done: Mapping[str, Cell],
    save: Callable[[Cell], None],
) -> list[Cell]:
    """Take the cells of a command line from those done, or measure them."""
    cells: list[Cell] = []
    torch.set_num_threads(args.threads)
    parts = PARTS if args.part == 'both' else (args.part,)
    for part, tokens in product(parts, sorted(set(args.tokens))):
        new = []
        for kind, runtime in product(args.kinds, args.runtimes):
            cell = Cell(part, kind, tokens, runtime)
            before = [c for c in cells if (c.part, c.row) == (part, cell.row)]
            if cell.label not in done:
                new.append(cell)
                limits = args.max_seconds, args.max_gib
                cell.reason = refusal(before, tokens, *limits)
                _count(args, cell)
            cells.append(done.get(cell.label, cell))
        _take_times(args, [cell for cell in new if cell.reason is None])
        for cell in new:
            save(cell)
    return cells


def _count(args: argparse.Namespace, cell: Cell) -> None:
    """Find all but the time."""
    network, grid = make_network(args, cell)
    scale = 1 if cell.part == 'layer' else PATCH
    cell.params, cell.macs = 0, 0
    # Pooling has no products and no parameters.
    if (cell.part, cell.kind) != ('layer', 'pool'):
        found = count_complexity(network, [scale * side for side in grid])
        cell.params, cell.macs = found.params, found.macs
        if cell.kind != 'paper':
            cell.macs = min(found.macs, found.folded or found.macs)
    if cell.reason is None:
        begin = partial(start, args, cell, arena=False)
        try:
            cell.memory = peak_memory(begin, args.device, args.threads)
        except (MemoryError, torch.cuda.OutOfMemoryError):
            cell.reason = 'memory ran out'
    what = f'left out, {cell.reason}' if cell.reason else 'memory is taken'
    progress(f'{cell.label}: {what}')


def _take_times(args: argparse.Namespace, cells: Sequence[Cell]) -> None:
    """Pass by pass, the cells in turn; after too long a pass there is none."""
    passes = [(cell, start(args, cell)) for cell in cells]
    least = LONG
    while passes:
        for cell, run in passes:
            begin = perf_counter()
            run()
            seconds = perf_counter() - begin
            if seconds >= least:
                cell.seconds.append(seconds)
                progress(f'{cell.label}: {1e3 * seconds:.1f} ms')
        least = 0.0
        passes = [
            (cell, run)
            for cell, run in passes
            if len(cell.seconds) < args.runs
            and max(cell.seconds, default=0) <= args.max_seconds
        ]


# The report of the cost


def fit_exponent(cells: Sequence[Cell], title: str) -> float | None:
    """Exponent of the tokens: a line through the logarithms.

    Cells, of one part and row, count from ``FIT_FROM`` tokens on.
    """
    points = [
        (cell.tokens, cell.figure(title))
        for cell in cells
        if cell.tokens >= FIT_FROM and cell.figure(title)
    ]
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def by_row(cells: Sequence[Cell]) -> dict[str, dict[str, list[Cell]]]:
    """Cells of each part, of each of its rows."""
    found: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        found.setdefault(cell.part, {}).setdefault(cell.row, []).append(cell)
    return found


def cost_tables(cells: Sequence[Cell]) -> str:
    """Write cells as tables of Markdown: a part and a quantity each."""
    tokens = sorted({cell.tokens for cell in cells})
    tables = []
    for (part, rows), title in product(by_row(cells).items(), QUANTITIES):
        lines = []
        for row, line in rows.items():
            found = {c.tokens: c.figure(title) for c in line}
            figures = [
                '-' if v is None else f'{v:,.{0 if v > 999 else 1 + (v < 9)}f}'
                for v in map(found.get, tokens)
            ]
            exponent = fit_exponent(line, title)
            # What does not grow has none.
            end = f'{exponent:.2f}' if abs(exponent or 0) > 0.004 else '-'
            lines.append([row, *figures, end])
        header = [f'{part}, {title}', *(f'{n:,}' for n in tokens)]
        tables.append(markdown_table([*header, 'exponent'], lines))
    return '\n\n'.join(tables)


def draw_cost(cells: Sequence[Cell], path: Path) -> None:
    """Draw time (left) and memory (right), both axes logarithmic."""
    from matplotlib.figure import Figure

    groups = list(product(by_row(cells).items(), [*QUANTITIES][:2]))
    size = 13, 2.3 * len(groups)
    figure = Figure(size, layout='constrained')
    panels = figure.subplots(len(groups) // 2, 2).flat
    ticks = sorted({cell.tokens for cell in cells})
    for axes, ((part, rows), title) in zip(panels, groups, strict=True):
        axes.set(xlabel='tokens n', ylabel=f'{title} of the {part}')
        axes.set_xscale('log', base=2)
        axes.set_yscale('log')
        for i, (row, line) in enumerate(rows.items()):
            kind = [*KINDS].index(line[0].kind)
            exponent = fit_exponent(line, title)
            end = '' if exponent is None else f': $n^{{{exponent:.2f}}}$'
            axes.plot(
                [c.tokens for c in line],
                # What was left out is not drawn.
                [c.figure(title) or np.nan for c in line],
                label=row + end,
                color=COLOURS[kind % len(COLOURS)],
                marker=MARKERS[kind],
                mfc=None if kind < len(COLOURS) else 'white',
                ls='--' if line[0].runtime == 'onnx' else '-',
                # What is drawn later is thinner, so that equal lines show.
                lw=4 - 3 * i / len(rows),
            )
        axes.set_xticks(ticks, [f'{n:,}' for n in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(loc='upper left', bbox_to_anchor=(1, 1), fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def report_cost(args: argparse.Namespace) -> None:
    """Measure the cost, print its tables and draw its picture."""
    if args.resume and args.json is None:
        raise UsageError('--resume needs --json, the file to go on from')
    plain = args.dtype == 'float32' and on_cpu(args.device)
    if 'onnx' in args.runtimes and (args.backward or not plain):
        raise UsageError('--runtimes onnx is for float32, forward, on a CPU')
    names = 'embed_dims num_heads num_anchors backward threads device dtype'
    conditions = {name: getattr(args, name) for name in names.split()}
    conditions |= dict(runs=args.runs, hardware=machine_line(args.device))
    done = {}
    if args.json and not args.resume:
        args.json.unlink(missing_ok=True)
    names = 'conditions', 'cell'
    for others, figures in read_lines(args.json, names) if args.resume else ():
        if others != conditions:
            raise UsageError(f'{args.json} was measured with {others}')
        cell = Cell(**figures)
        if cell.reason is None:
            done[cell.label] = cell

    def save(cell: Cell) -> None:
        if args.json is not None:
            record = dict(conditions=conditions, cell=asdict(cell))
            append_line(args.json, record)

    cells = measure_cost(args, done, save)
    hardware = f'{conditions["hardware"]}; {args.dtype}'
    if args.device == 'cpu':
        hardware += f', threads: {args.threads}'
    hardware += ', forward and backward' if args.backward else ', forward'
    convention = CONVENTION.format(fit_from=FIT_FROM, **vars(args))
    print('\n\n'.join([cost_tables(cells), hardware, fill(convention, 79)]))
    left_out = [f'- {c.label}: {c.reason}.' for c in cells if c.reason]
    if left_out:
        print('\nLeft out:\n\n' + '\n'.join(left_out))
    if args.out_picture is not None:
        draw_cost(cells, args.out_picture)


# Accuracy


class Job(NamedTuple):
    """A training, whose figure is one on held-out images or reported.

    Attributes:
        rate: Factor of the config's learning rate.
        std: Standard deviation of a classifier's linear layers at the start;
            None: that of the config.
        seed: None: held-out images are to choose rate and deviation.
    """

    task: str
    kind: str
    steps: int
    rate: float
    std: float | None
    seed: int | None

    @property
    def name(self) -> str:
        last = 'tuning' if self.seed is None else f'seed{self.seed}'
        return '_'.join([*map(str, self[:-1]), last])


class Study:
    """The trainings of a command line, as far as its results allow."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        # Percent.
        self.scores: dict[Job, float] = {
            Job(*fields): score
            for score, *fields in read_lines(
                args.work_dir / RESULTS, ['score', *Job._fields]
            )
        }

    def tuning(self, task: str, kind: str) -> list[Job]:
        """The trainings that choose the setting; none if it is given."""
        if task not in self.args.tune:
            return []
        # One step to warm up at least, and another.
        steps = max(round(self.args.tune_share * self.args.steps[task]), 2)
        stds = self.args.stds if task == 'classes' else [None]
        grid = product(self.args.rates, stds)
        return [Job(task, kind, steps, rate, std, None) for rate, std in grid]

    def reported(self, task: str, kind: str) -> list[Job]:
        """One for each seed; none while the best setting is not known."""
        jobs = self.tuning(task, kind)
        if any(job not in self.scores for job in jobs):
            return []
        best = max(jobs, key=self.scores.get, default=None)
        setting = (best.rate, best.std) if best else (1.0, None)
        steps, seeds = self.args.steps[task], self.args.seeds
        return [Job(task, kind, steps, *setting, seed) for seed in seeds]

    def start(self, job: Job) -> Path | None:
        """Where a segmentor starts from: its classifier, if trained."""
        seed = self.args.seeds[0] if job.seed is None else job.seed
        for start in self.reported('classes', job.kind):
            if start.seed == seed and start in self.scores:
                folder = self.args.work_dir / start.name
                return folder / f'iter_{start.steps}.pth'
        return None

    def to_do(self) -> list[Job]:
        """What can be trained now and is not, the first first."""
        jobs: list[Job] = []
        for task in self.args.tasks:
            for kind in self.args.kinds:
                jobs += self.tuning(task, kind)
            seeds = [self.reported(task, kind) for kind in self.args.kinds]
            jobs += sorted(sum(seeds, []), key=lambda job: job.seed)
        return [
            job
            for job in jobs
            if job not in self.scores
            and (job.task != 'maps' or self.start(job))
        ]


def config_of(job: Job, weights: Path | None = None) -> Config:
    """Make the config of a training."""
    cfg = read_config(ROOT / f'configs/{TASKS[job.task][0]}.py')
    attention, attn_cfg = ATTENTIONS[job.kind]
    backbone = cfg.model.backbone
    if job.task == 'boxes':
        backbone.stage_cfg = dict(attn_cfg, attention=attention)
    else:
        backbone.attention, backbone.attn_cfg = attention, dict(attn_cfg)
        # The values of these have no map.
        if job.kind not in ('paca', 'pool'):
            backbone.attn_cfg.dwc_v = True
    if job.std is not None:
        backbone.init_cfg.std = job.std
    if weights is not None:
        backbone.init_cfg.checkpoint = str(weights)
    cfg.optim_wrapper.optimizer.lr *= job.rate
    cfg.randomness = dict(seed=job.seed or 0)
    steps, warm_up = job.steps, max(job.steps // 10, 1)
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=steps, val_interval=steps
    )
    cosine = dict(begin=warm_up, end=steps, T_max=steps - warm_up)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=warm_up),
        dict(type='CosineAnnealingLR', by_epoch=False, eta_min=1e-5, **cosine),
    ]
    # Others pause at the end of an epoch.
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    cfg.log_processor = dict(by_epoch=False)
    # Segmentors start from it.
    kept = job.task == 'classes' and job.seed is not None
    hook = dict(type='CheckpointHook', by_epoch=False, save_optimizer=False)
    hook |= dict(interval=steps if kept else -1, save_last=kept)
    cfg.default_hooks.checkpoint = hook
    if job.seed is None:
        _hold_out(cfg)
    return cfg


def _hold_out(cfg: Config) -> None:
    """Evaluate on every fifth training image, and train on the others."""
    data, pipeline = cfg.train_dataloader.dataset, cfg.test_pipeline
    files = Path(data.data_root, 'train').rglob('*.*')
    every = range(sum(file.is_file() for file in files))
    held = dict(pipeline=pipeline, indices=[*every[::5]])
    cfg.val_dataloader.dataset = dict(data, **held)
    data.indices = [i for i in every if i % 5]
    if cfg.val_evaluator.type == 'CocoMetric':
        # Boxes then come with the images: the file has those of all.
        cfg.val_evaluator.ann_file = None
        keys = 'img_id img_path ori_shape img_shape scale_factor instances'
        pipeline[-1].meta_keys = keys.split()


def train(args: argparse.Namespace, job: Job, weights: Path | None) -> None:
    """Run a training in a process of its own, and add its result."""
    begin, folder = perf_counter(), args.work_dir / job.name
    folder.mkdir(exist_ok=True)
    config, log = folder / 'config.py', folder / 'log.txt'
    config_of(job, weights).dump(config)
    command = [sys.executable, ROOT / 'tools/train.py', config]
    command += ['--work-dir', folder, '--skip-data-check']
    env = dict(os.environ, OMP_NUM_THREADS=str(args.threads))
    with log.open('w') as out:
        done = subprocess.run(command, stdout=out, stderr=out, env=env)
    if done.returncode:
        raise UsageError(f'a training has failed, see {log}')
    _, metric, unit = TASKS[job.task]
    found = [r[metric] for r in read_run(folder).val.values() if metric in r]
    # A detector that finds no box has no figure.
    score = unit * found[-1] if found and math.isfinite(found[-1]) else 0.0
    seconds = perf_counter() - begin
    record = dict(job._asdict(), score=score, seconds=seconds)
    append_line(args.work_dir / RESULTS, record)
    progress(f'{job.name}: {score:.2f} % in {seconds:.0f} s')


def measure_accuracy(args: argparse.Namespace) -> None:
    """Train what is not done and no other process does.

    A training that fails lets the others run, and is an error at the end.
    """
    # The training ends with this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    failed: dict[Job, str] = {}
    while jobs := [job for job in Study(args).to_do() if job not in failed]:
        for job in jobs:
            with (args.work_dir / f'{job.name}.lock').open('w') as lock:
                try:
                    # Held as long as the file is open.
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                study = Study(args)
                if job in study.scores:
                    break
                try:
                    is_map = job.task == 'maps'
                    train(args, job, study.start(job) if is_map else None)
                except UsageError as error:
                    failed[job] = str(error)
                    progress(f'{job.name}: {error}')
                break
        else:
            # Others train what is left.
            sleep(1)
    if failed:
        raise UsageError('\n'.join(failed.values()))


def accuracy_table(args: argparse.Namespace) -> str:
    """Write what is done as a table of Markdown."""
    study = Study(args)
    rows = []
    for kind in args.kinds:
        row = [kind]
        for task in args.tasks:
            jobs = study.reported(task, kind)
            found = [study.scores[j] for j in jobs if j in study.scores]
            spread = f' ± {stdev(found):.1f}' if len(found) > 1 else ''
            row += ['{:g}, {}'.format(*jobs[0][3:5]) if jobs else '-']
            row += [f'{mean(found):.1f}{spread}' if found else '-']
        cfg = config_of(Job('classes', kind, 10, 1, None, 0))
        counted = count_complexity(build_model(cfg), (48, 48))
        macs = min(counted.macs, counted.folded or counted.macs)
        rows.append([*row, f'{counted.params / 1e3:.0f}', f'{macs / 1e6:.1f}'])
    columns = [x for task in args.tasks for x in ('rate, std', f'{task} (%)')]
    header = ['attention', *columns, 'parameters (k)', 'MACs (M)']
    return markdown_table(header, rows)


# The command line


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, add_arguments, text in (
        ('cost', _add_cost, 'time, memory, counts'),
        ('accuracy', _add_accuracy, 'train on the digits'),
        ('table', _add_accuracy, 'what accuracy has found so far'),
    ):
        style = parser.formatter_class
        command = commands.add_parser(name, help=text, formatter_class=style)
        add_arguments(command.add_argument)
    return parser.parse_args(argv)


def _add_cost(add: Callable) -> None:
    sizes, kinds = [196, 1024, 4096, 16384, 65536], [*ATTENTIONS]
    add('--tokens', nargs='+', type=a_count, default=sizes, help='numbers')
    for name, value, text in (
        ('embed-dims', 384, 'channels'),
        ('num-heads', 6, 'heads'),
        ('num-anchors', 30, 'anchors'),
        ('threads', 1, 'threads on a CPU'),
        ('runs', 3, 'timed passes of each'),
    ):
        add(f'--{name}', type=a_count, default=value, help=text)
    several = dict(nargs='+', help="paper: anchors in the paper's order")
    add('--kinds', choices=KINDS, default=kinds, **several)
    several['help'] = 'what runs them; onnx: ONNX Runtime'
    runtimes = ('eager', 'onnx')
    add('--runtimes', choices=runtimes, default=['eager'], **several)
    add('--part', choices=[*PARTS, 'both'], default='both', help='what runs')
    add('--backward', action='store_true', help='forward and backward')
    add('--device', type=a_device, default='cpu', help='cpu or one of CUDA')
    add('--dtype', choices=DTYPES, default=DTYPES[0], help='of all numbers')
    budget = 'a pass that is expected to take more is left out'
    add('--max-seconds', type=float, default=60.0, help=budget)
    add('--max-gib', type=float, default=16.0, help=budget)
    add('--json', type=a_file, help='file for all figures, as it goes')
    add('--resume', action='store_true', help='go on from the file of --json')
    add('--out-picture', type=a_file, help='file for a picture')


def _add_accuracy(add: Callable) -> None:
    several = dict(nargs='+', choices=ATTENTIONS, default=[*ATTENTIONS])
    add('--kinds', **several, help='of attention')
    several = dict(nargs='*', choices=TASKS)
    add('--tasks', **several, default=[*TASKS], help='the first first')
    text = 'tasks that choose a setting; others take that of their config'
    add('--tune', **several, default=['classes'], help=text)
    for task, steps in (('class', 1000), ('map', 300), ('box', 150)):
        add(f'--{task}-steps', type=a_count, default=steps, help='a training')
    text = 'share of the steps that a training to choose by has'
    add('--tune-share', type=float, default=0.4, help=text)
    several = dict(nargs='+', type=float)
    text = 'to choose from: factors of the rate'
    add('--rates', **several, default=[1.0, 3.0], help=text)
    text = 'to choose from: standard deviations at the start'
    add('--stds', **several, default=[0.05, 0.15], help=text)
    add('--seeds', nargs='+', type=int, default=[0, 1, 2], help='reported')
    add('--threads', type=a_count, default=1, help='of a training')
    folder = Path('work_dirs/attentions')
    add('--work-dir', type=Path, default=folder, help='for all that is made')


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.command == 'cost':
        report_cost(args)
        return
    args.steps = dict(
        classes=args.class_steps, maps=args.map_steps, boxes=args.box_steps
    )
    if 'classes' not in args.tasks and 'maps' in args.tasks:
        raise UsageError('--tasks maps needs classes: where maps start from')
    if not {*args.tune} <= {*args.tasks}:
        raise UsageError(f'--tune {args.tune} is not among --tasks')
    if args.command == 'accuracy':
        measure_accuracy(args)
    print(accuracy_table(args))


if __name__ == '__main__':
    run_command_line(main)
