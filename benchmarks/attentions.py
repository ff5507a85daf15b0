"""Compare attentions: cost over the number of tokens, accuracy on digits.

cost: time, memory, parameters and operations of layers and whole backbones,
with random weights on random inputs; the kind 'paper' is learned anchors in
the paper's order. Kinds take turns, so that a disturbance of the machine meets
all alike.

accuracy: small models on the digits, trained by tools/train.py. The rate, and
of classifiers the deviation at the start, are chosen for each kind on training
images that are held out, every fifth digit or every twentieth scene; a task of
one rate has no such search. Label maps start from the classifiers. What is in
the results is not run again; processes with different --kinds may share a work
folder. table: what has been found so far.
"""

import json
import math
import os
import signal
import subprocess
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from io import BytesIO
from itertools import chain, product
from pathlib import Path
from statistics import mean, median, stdev
from textwrap import fill
from time import perf_counter
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
    onnx_session,
    peak_memory,
    progress,
    write_json,
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
PEERS = 'vanilla agent linear focused castling paca pool'
ATTENTIONS = {
    'anchor': ('learned', dict(anchor_std=3.0)),
    'untied': ('learned', dict(UNTIED, anchor_std=1.0)),
    **{name: (name, {}) for name in PEERS.split()},
}
# For the cost alone: other orders of anchors, and ClusTR's clusters.
KINDS = dict(
    ATTENTIONS,
    query=('query', {}),
    paper=('learned', dict(order='paper')),
    cluster=None,
)
# Only accuracy: without the convolution of values, which paca and pool lack.
BARE = {
    'untied-bare': ('learned', dict(ATTENTIONS['untied'][1], dwc_v=False)),
    'vanilla-bare': ('vanilla', dict(dwc_v=False)),
}
TRAINED = ATTENTIONS | BARE
# A task's config, figure, unit of that in percent, steps, and rates to choose
# from, over the config's.
CLASSES = 'anchorformer_t_digits', 'accuracy/top1', 1, 2160, (0.25, 0.5, 1.0)
MAPS = 'semfpn_anchorformer_t_digits', 'mIoU', 1, 600, (0.25, 0.5, 1.0)
BOXES = 'picodet_anchorformer_t_digits', 'coco/bbox_mAP', 100, 400, (1.0,)
TASKS = dict(classes=CLASSES, maps=MAPS, boxes=BOXES)
RESULTS = 'results.jsonl'
PARTS, RUNTIMES = ('layer', 'backbone'), ('eager', 'onnx')
TOKENS, PATCH = (196, 1024, 4096, 16384, 65536), 16
TIME, MEMORY = 'time (ms)', 'memory (MiB)'
TITLES = (TIME, MEMORY, 'MACs (G)', 'parameters (M)')
# Exponents are fitted from here on: with few tokens the fixed costs count.
FIT_FROM = 1024
# Colours that also those tell apart who see no red or no green.
COLOURS = ('#0072b2', '#56b4e9', '#d55e00', '#009e73', '#cc79a7', '#666666')
MARKERS = 'os^Dv<>phX*P'
CONVENTION = """\
{hardware}; threads: {threads}; backward: {backward}. Time is the median of
{runs} passes of one image that the kinds take in turn; memory is the peak of a
pass beyond weights and inputs. The exponents are least squares of the
logarithms over n >= {fit_from:,}. A layer gets n tokens of {embed_dims}
channels: heads {num_heads}, anchors {num_anchors}. A backbone gets the image
whose patches of 16 px are n tokens: AnchorFormer with 12 such layers, or
ClusTR S, which starts at 16 n tokens. Vanilla attention is torch's fused one;
ONNX Runtime has anchors folded. MACs are those of the cheaper order. Left out
(-) is what ran out of memory, or what the sizes before let expect to take more
than {max_seconds:g} s or {max_gib:g} GiB a pass."""
ACCURACY = """\
Percent, mean ± standard deviation (number of seeds): top-1 accuracy of
classes, mIoU of maps, box mAP. Parameters and MACs, those of the cheaper
order, are the classifier's. The second table has the scores on held-out
images by rate, over the config's, and deviation at the start; the *best*
setting was taken."""
TIMES = """
Under a number of tokens: the time of a layer on so many, ms, as 'cost' found
it, in torch; in ONNX Runtime."""


@dataclass
class Cell:
    """Cost of one kind of attention on so many tokens.

    Figures are by title; it has none of time and memory if it was left out.
    """

    part: str
    kind: str
    tokens: int
    runtime: str = 'eager'
    seconds: list[float] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def row(self) -> str:
        return self.kind + (', ONNX' if self.runtime == 'onnx' else '')

    @property
    def label(self) -> str:
        return f'{self.part}, {self.row}, {self.tokens:,} tokens'

    @property
    def grid(self) -> tuple[int, int]:
        """The squarest map of the tokens."""
        sides = range(1, math.isqrt(self.tokens) + 1)
        height = max(side for side in sides if self.tokens % side == 0)
        return height, self.tokens // height


# By part and row, a cell for each number of tokens.
Rows = dict[str, dict[str, list[Cell]]]


def count(network: nn.Module, shape: Sequence[int]) -> tuple[int, int]:
    """Parameters, and multiply-accumulates in the cheaper order."""
    found = count_complexity(network, shape)
    return found.params, min(found.macs, found.folded or found.macs)


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


def make_network(args: Namespace, cell: Cell) -> nn.Module:
    """Make what a cell measures."""
    width, heads = sizes = args.embed_dims, args.num_heads
    if cell.kind == 'cluster':
        if cell.part == 'backbone':
            return ClusTR('small')
        return OnMap(ClusterAttention(*sizes), cell.grid)
    name, attn_cfg = KINDS[cell.kind]
    if cell.part == 'layer':
        layer = build_attention(name, *sizes, args.num_anchors, **attn_cfg)
        return OnMap(layer, cell.grid)
    # That of S, but for its width.
    arch = dict(embed_dims=width, num_layers=12, num_heads=heads)
    return AnchorFormer(
        dict(arch, feedforward_channels=4 * width),
        img_size=[PATCH * side for side in cell.grid],
        patch_size=PATCH,
        attention=name,
        num_anchors=args.num_anchors,
        attn_cfg=attn_cfg,
        # Patches are then all tokens there are.
        with_cls_token=False,
        out_type='featmap',
    )


def start(args: Namespace, cell: Cell, arena: bool = True) -> Pass:
    """Make a pass of a cell ready; it leaves nothing behind.

    The arena of ONNX Runtime keeps memory that was taken.
    """
    torch.manual_seed(0)
    network = make_network(args, cell).eval()
    if cell.part == 'layer':
        inputs = torch.randn(1, cell.tokens, args.embed_dims)
    else:
        inputs = torch.randn(1, 3, *(PATCH * side for side in cell.grid))
    if cell.runtime == 'onnx':
        return _start_onnx(network, inputs, args.threads, arena)
    network.to(args.device)
    # What is before a layer wants its gradient; images need none.
    wanted = args.backward and cell.part == 'layer'
    inputs = inputs.to(args.device).requires_grad_(wanted)

    def run() -> None:
        with torch.set_grad_enabled(args.backward):
            outputs = network(inputs)
        if args.backward:
            # Gradient of half the sum of the squares.
            outputs = [outputs] if isinstance(outputs, Tensor) else outputs
            torch.autograd.backward(outputs, [o.detach() for o in outputs])
            network.zero_grad(set_to_none=True)
            inputs.grad = None
        if inputs.is_cuda:
            torch.cuda.synchronize(inputs.device)

    return run


def _start_onnx(
    network: nn.Module, inputs: Tensor, threads: int, arena: bool
) -> Pass:
    network, file = fuse(network), BytesIO()
    make_traceable(network, dynamic=False)
    with warnings.catch_warnings(), torch.no_grad(), SizesFollowed(fixed=True):
        # On sizes that are fixed in the trace.
        warnings.simplefilter('ignore')
        torch.onnx.export(
            network, (inputs,), file, opset_version=OPSET, dynamo=False
        )
    session = onnx_session(file.getvalue(), threads, arena)
    feed = {session.get_inputs()[0].name: inputs.numpy()}
    return partial(session.run, None, feed)


def is_too_much(args: Namespace, before: list[Cell], tokens: int) -> bool:
    """Tell if a row, by its cells before, is expected to exceed the limits.

    It goes on as between its last two sizes, or, with one, quadratically.
    """
    if not before or MEMORY not in before[-1].figures:
        return bool(before)
    limits = {TIME: 1e3 * args.max_seconds, MEMORY: 2**10 * args.max_gib}
    for title, limit in limits.items():
        exponent = fit_exponent(before[-2:], title, least=1) or 2
        growth = (tokens / before[-1].tokens) ** exponent
        if before[-1].figures[title] * growth > limit:
            return True
    return False


def measure_cost(args: Namespace) -> Rows:
    """Measure the rows of a command line; its JSON is written as it goes."""
    rows, done = {}, []
    for part, tokens in dict.fromkeys(product(args.part, sorted(args.tokens))):
        for kind, runtime in dict.fromkeys(product(args.kinds, args.runtimes)):
            cell = Cell(part, kind, tokens, runtime)
            row = rows.setdefault(part, {}).setdefault(cell.row, [])
            _count(args, cell, row)
            row.append(cell)
            done.append(cell)
        _take_times(args, [row[-1] for row in rows[part].values()])
        if args.json is not None:
            record = dict(vars(args), json=None, out_picture=None)
            write_json(record | dict(cells=[*map(asdict, done)]), args.json)
    return rows


def _count(args: Namespace, cell: Cell, before: list[Cell]) -> None:
    """Find all but the time, and the memory only if it is not too much."""
    scale = 1 if cell.part == 'layer' else PATCH
    params, macs = 0, 0
    # Pooling has no products and no parameters.
    if (cell.part, cell.kind) != ('layer', 'pool'):
        shape = [scale * side for side in cell.grid]
        params, macs = count(make_network(args, cell), shape)
    cell.figures = {'MACs (G)': macs / 1e9, 'parameters (M)': params / 1e6}
    if is_too_much(args, before, cell.tokens):
        return progress(f'{cell.label}: left out')
    begin = partial(start, args, cell, arena=False)
    try:
        peak = peak_memory(begin, args.device, args.threads)
        cell.figures[MEMORY] = peak / 2**20
        progress(f'{cell.label}: {cell.figures[MEMORY]:.1f} MiB')
    except (MemoryError, torch.cuda.OutOfMemoryError):
        progress(f'{cell.label}: memory ran out')


def _take_times(args: Namespace, cells: Sequence[Cell]) -> None:
    """Pass by pass, the cells in turn; after too long a pass there is none."""
    passes = [(c, start(args, c)) for c in cells if MEMORY in c.figures]
    for i, (cell, run) in product(range(args.runs + 1), passes):
        longest = max(cell.seconds, default=0)
        if len(cell.seconds) == args.runs or longest > args.max_seconds:
            continue
        begin = perf_counter()
        run()
        seconds = perf_counter() - begin
        # A first pass sets things up: one of less than 2 s does not count.
        if i > 0 or seconds >= 2:
            cell.seconds.append(seconds)
            cell.figures[TIME] = 1e3 * median(cell.seconds)
            progress(f'{cell.label}: {1e3 * seconds:.1f} ms')


def fit_exponent(
    cells: Sequence[Cell], title: str, least: int = FIT_FROM
) -> float | None:
    """Exponent of a row, from so many tokens on: a line through logarithms."""
    points = [
        (cell.tokens, cell.figures[title])
        for cell in cells
        if cell.tokens >= least and cell.figures.get(title)
    ]
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def _figure(value: float | None) -> str:
    """Write about three digits."""
    if value is None:
        return '-'
    return f'{value:,.{0 if value > 999 else 1 + (value < 9)}f}'


def cost_tables(rows: Rows) -> str:
    """Write rows as tables of Markdown: a part and a quantity each."""
    tables = []
    for part, title in product(rows, TITLES):
        lines = []
        for row, cells in rows[part].items():
            figures = [_figure(cell.figures.get(title)) for cell in cells]
            exponent = fit_exponent(cells, title)
            # What does not grow has none.
            end = f'{exponent:.2f}' if abs(exponent or 0) > 0.004 else '-'
            lines.append([row, *figures, end])
        tokens = [f'{cell.tokens:,}' for cell in cells]
        header = [f'{part}, {title}', *tokens, 'exponent']
        tables.append(markdown_table(header, lines))
    return '\n\n'.join(tables)


def draw_cost(rows: Rows, path: Path) -> None:
    """Draw time (left) and memory (right), both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure((13, 4.6 * len(rows)), layout='constrained')
    panels = figure.subplots(len(rows), 2).flat
    groups = product(rows, (TIME, MEMORY))
    for axes, (part, title) in zip(panels, groups, strict=True):
        axes.loglog()
        axes.set(xlabel='tokens n', ylabel=f'{title} of the {part}')
        for i, (row, cells) in enumerate(rows[part].items()):
            kind = [*KINDS].index(cells[0].kind)
            exponent = fit_exponent(cells, title)
            tokens = [cell.tokens for cell in cells]
            axes.plot(
                tokens,
                [cell.figures.get(title, np.nan) for cell in cells],
                label=f'{row}: $n^{{{exponent:.2f}}}$' if exponent else row,
                color=COLOURS[kind % len(COLOURS)],
                marker=MARKERS[kind],
                mfc=None if kind < len(COLOURS) else 'white',
                ls='--' if cells[0].runtime == 'onnx' else '-',
                # What is drawn later is thinner, so that equal lines show.
                lw=4 - 3 * i / len(rows[part]),
            )
        axes.set_xticks(tokens, [f'{n:,}' for n in tokens])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(loc='upper left', bbox_to_anchor=(1, 1), fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def report_cost(args: Namespace) -> None:
    """Measure the cost, print its tables and draw its picture."""
    if 'onnx' in args.runtimes and (args.backward or not on_cpu(args.device)):
        raise UsageError('--runtimes onnx is for a CPU, without --backward')
    torch.set_num_threads(args.threads)
    args.hardware = machine_line(args.device)
    rows = measure_cost(args)
    convention = CONVENTION.format(fit_from=FIT_FROM, **vars(args))
    print(f'{cost_tables(rows)}\n\n{fill(convention, 79)}')
    if args.out_picture is not None:
        draw_cost(rows, args.out_picture)


class Job(NamedTuple):
    """A training.

    The rate is a factor of the config's; the deviation of linear layers at the
    start may be None, the config's. No seed: it is to choose these two by.
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
    """The trainings of a command line, and their scores so far, percent."""

    def __init__(self, args: Namespace) -> None:
        self.args = args
        self.scores: dict[Job, float] = {}
        path = args.work_dir / RESULTS
        try:
            for line in path.read_text().splitlines() if path.exists() else ():
                record = json.loads(line)
                job = Job(*(record[name] for name in Job._fields))
                self.scores[job] = record['score']
        except (ValueError, LookupError, TypeError) as error:
            raise UsageError(f'{path} has no records: {error}') from error

    def settings(self, task: str) -> list[tuple[float, float | None]]:
        """Rates, and deviations at the start, that a task can have."""
        stds = self.args.stds if task == 'classes' else [None]
        return [*product(vars(self.args)[f'{task}_rates'], stds)]

    def tuning(self, task: str, kind: str) -> list[Job]:
        """The trainings that choose a setting; none if there is one alone."""
        found = self.settings(task)
        # One step to warm up at least, and another.
        steps = max(round(0.4 * vars(self.args)[f'{task}_steps']), 2)
        jobs = [Job(task, kind, steps, *setting, None) for setting in found]
        return jobs if len(jobs) > 1 else []

    def reported(self, task: str, kind: str) -> list[Job]:
        """One for each seed; none while the best setting is not known."""
        setting, jobs = self.settings(task)[0], self.tuning(task, kind)
        if any(job not in self.scores for job in jobs):
            return []
        if jobs:
            _, _, _, *setting, _ = max(jobs, key=self.scores.get)
        steps, seeds = vars(self.args)[f'{task}_steps'], {*self.args.seeds}
        return [Job(task, kind, steps, *setting, s) for s in sorted(seeds)]

    def found(self, task: str, kind: str) -> list[float]:
        """Scores of a task's seeds, as far as they are there."""
        jobs = self.reported(task, kind)
        return [self.scores[job] for job in jobs if job in self.scores]

    def start(self, job: Job) -> Path:
        """Where a segmentor starts from: its classifier, or the first."""
        for start in self.reported('classes', job.kind):
            if job.seed in (start.seed, None) and start in self.scores:
                folder = self.args.work_dir / start.name
                return folder / f'iter_{start.steps}.pth'
        raise UsageError(f'{job.name} has no classifier to start from')

    def jobs(self) -> Iterator[Job]:
        """All trainings in order; each needs the scores of those before."""
        kinds = self.args.kinds
        for task in self.args.tasks:
            for kind in kinds:
                yield from self.tuning(task, kind)
            jobs = [job for kind in kinds for job in self.reported(task, kind)]
            yield from sorted(jobs, key=lambda job: job.seed)


def config_of(job: Job, weights: Path | None = None) -> Config:
    """Make the config of a training."""
    cfg = read_config(ROOT / f'configs/{TASKS[job.task][0]}.py')
    attention, attn_cfg = TRAINED[job.kind]
    backbone = cfg.model.backbone
    if job.task == 'boxes':
        backbone.stage_cfg = dict(attn_cfg, attention=attention)
    else:
        backbone.attention, backbone.attn_cfg = attention, dict(attn_cfg)
        # The values of these have no map.
        if job.kind not in ('paca', 'pool'):
            backbone.attn_cfg.setdefault('dwc_v', True)
    if job.std is not None:
        backbone.init_cfg.std = job.std
    if weights is not None:
        backbone.init_cfg.checkpoint = str(weights)
    cfg.optim_wrapper.optimizer.lr *= job.rate
    cfg.randomness = dict(seed=job.seed or 0)
    steps, warm_up = job.steps, max(job.steps // 10, 1)
    loop = dict(type='IterBasedTrainLoop', max_iters=steps)
    cfg.train_cfg = dict(loop, val_interval=steps)
    rise = dict(type='LinearLR', start_factor=0.01, end=warm_up)
    fall = dict(type='CosineAnnealingLR', eta_min=1e-5, begin=warm_up)
    fall |= dict(end=steps, T_max=steps - warm_up)
    cfg.param_scheduler = [dict(p, by_epoch=False) for p in (rise, fall)]
    # Others pause at the end of an epoch.
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    cfg.log_processor = dict(by_epoch=False)
    # Segmentors start from it.
    kept = job.task == 'classes' and job.seed is not None
    hook = dict(type='CheckpointHook', by_epoch=False, save_optimizer=False)
    hook |= dict(interval=steps if kept else -1, save_last=kept)
    cfg.default_hooks.checkpoint = hook
    if job.seed is None:
        data = cfg.train_dataloader.dataset
        files = Path(data.data_root, 'train').rglob('*.*')
        every = range(sum(file.is_file() for file in files))
        step = 5 if job.task == 'classes' else 20
        held = dict(pipeline=cfg.test_pipeline, indices=[*every[::step]])
        cfg.val_dataloader.dataset = dict(data, **held)
        data.indices = [i for i in every if i % step]
    return cfg


def train(args: Namespace, job: Job, weights: Path | None) -> float:
    """Run a training in a process of its own, and add its result; give it."""
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
    _, metric, unit, *_ = TASKS[job.task]
    found = [r[metric] for r in read_run(folder).val.values() if metric in r]
    # A detector that finds no box has no figure.
    score = unit * found[-1] if found and math.isfinite(found[-1]) else 0.0
    record = dict(job._asdict(), score=score, seconds=perf_counter() - begin)
    with (args.work_dir / RESULTS).open('a') as file:
        file.write(json.dumps(record) + '\n')
    progress(f'{job.name}: {score:.2f} %')
    return score


def measure_accuracy(args: Namespace) -> None:
    """Train what is not done; what fails is an error at the end."""
    # The training ends with this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    study, failed = Study(args), []
    for job in study.jobs():
        if job in study.scores:
            continue
        try:
            weights = study.start(job) if job.task == 'maps' else None
            study.scores[job] = train(args, job, weights)
        except UsageError as error:
            failed.append(str(error))
            progress(failed[-1])
    if failed:
        raise UsageError('\n'.join(failed))


def layer_times(args: Namespace) -> dict[tuple[str, str], dict[int, float]]:
    """Times in ms of layers by kind and runtime, then by tokens."""
    times = {}
    try:
        cells = [Cell(**c) for c in json.loads(args.cost.read_text())['cells']]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f'--cost {args.cost} is not of cost: {error}'
        ) from error
    for cell in cells:
        if cell.part == 'layer' and TIME in cell.figures:
            row = times.setdefault((cell.kind, cell.runtime), {})
            row[cell.tokens] = cell.figures[TIME]
    return times


def accuracy_table(args: Namespace) -> str:
    """Write what is done as tables of Markdown: of scores, of the search."""
    study, lines, search = Study(args), [], []
    times = layer_times(args) if args.cost else {}
    tokens = sorted({n for row in times.values() for n in row})
    for kind in args.kinds:
        line = [kind]
        tuning = [study.tuning(task, kind) for task in args.tasks]
        for task in args.tasks:
            found = study.found(task, kind)
            spread = f' ± {stdev(found):.1f}' if len(found) > 1 else ''
            text = f'{mean(found):.1f}{spread}' if found else '-'
            line.append(f'{text} ({len(found)})')
        cfg = config_of(Job('classes', kind, 10, 1, None, 0))
        params, macs = count(build_model(cfg), (48, 48))
        line += [f'{params / 1e3:.0f}', f'{macs / 1e6:.1f}']
        for n in tokens:
            rows = (times.get((kind, runtime), {}) for runtime in RUNTIMES)
            line.append('; '.join(_figure(row.get(n)) for row in rows))
        lines.append(line)
        search.append([kind])
        for jobs in tuning:
            scores = [study.scores.get(job) for job in jobs]
            best = max((s for s in scores if s is not None), default=-1)
            for score in scores:
                mark = '*' if score == best else ''
                search[-1].append(f'{mark}{_figure(score)}{mark}')
    header = ['attention', *args.tasks, 'parameters (k)', 'MACs (M)']
    table = markdown_table([*header, *(f'{n:,}' for n in tokens)], lines)
    header = ['held out']
    for job in chain(*tuning):
        std = '' if job.std is None else f', {job.std:g}'
        header.append(f'{job.task}, {job.rate:g}{std}')
    text = fill(ACCURACY + (TIMES if tokens else ''), 79)
    return '\n\n'.join([table, markdown_table(header, search), text])


def draw_accuracy(args: Namespace) -> None:
    """Draw the time of layers in torch, and each task over it."""
    from matplotlib.figure import Figure

    study, times = Study(args), layer_times(args)
    known = sorted({n for row in times.values() for n in row})
    if args.cost_tokens not in known:
        text = f'--cost-tokens {args.cost_tokens}: {args.cost} has {known}'
        raise UsageError(text)
    figure = Figure((10, 7.5), layout='constrained')
    first, *panels = figure.subplots(2, 2).flat
    for axes in panels[len(args.tasks) :]:
        axes.remove()
    panels = panels[: len(args.tasks)]
    first.loglog()
    first.set(xlabel='tokens n', ylabel='time of a layer, ms')
    for task, axes in zip(args.tasks, panels, strict=True):
        label = f'a layer on {args.cost_tokens:,} tokens, ms'
        metric = TASKS[task][1].split('/')[-1]
        axes.set(xlabel=label, ylabel=f'{metric} of {task}, %')
    for kind in args.kinds:
        row = times.get((kind, 'eager'), {})
        if args.cost_tokens not in row:
            continue
        i = [*KINDS].index(kind)
        style = dict(color=COLOURS[i % len(COLOURS)], marker=MARKERS[i])
        style |= dict(mfc=None if i < len(COLOURS) else 'white', label=kind)
        first.plot(row.keys(), row.values(), **style)
        for task, axes in zip(args.tasks, panels, strict=True):
            if found := study.found(task, kind):
                spread = stdev(found) if len(found) > 1 else 0
                x, y = row[args.cost_tokens], mean(found)
                axes.errorbar(x, y, spread, ls='', capsize=3, **style)
    for axes in (first, *panels):
        axes.grid(alpha=0.3)
    for axes in panels:
        axes.set_xlim(0, None)
    first.figure.legend(
        *first.get_legend_handles_labels(), loc='outside right center'
    )
    with replacing(args.out_picture) as temporary:
        figure.savefig(temporary, dpi=120)


def parse_args(argv: Sequence[str] | None) -> Namespace:
    parser = argument_parser(__doc__)
    need = dict(dest='command', required=True)
    commands = parser.add_subparsers(**need, parser_class=argument_parser)
    add = commands.add_parser('cost').add_argument
    number, several = partial(add, type=a_count), partial(add, nargs='+')
    several('--tokens', type=a_count, default=TOKENS, help='numbers of them')
    number('--embed-dims', default=384, help='channels')
    number('--num-heads', default=6, help='heads')
    number('--num-anchors', default=30, help='anchors')
    number('--threads', default=1, help='threads on a CPU')
    number('--runs', default=3, help='timed passes of each')
    several('--kinds', choices=KINDS, default=[*ATTENTIONS], help='which')
    several('--runtimes', choices=RUNTIMES, default=RUNTIMES[:1], help='which')
    several('--part', choices=PARTS, default=PARTS, help='what runs')
    add('--backward', action='store_true', help='forward and backward')
    add('--device', type=a_device, default='cpu', help='cpu or one of CUDA')
    text = 'a pass that is expected to take more is left out'
    add('--max-seconds', type=float, default=60.0, help=text)
    add('--max-gib', type=float, default=16.0, help=text)
    add('--json', type=a_file, help='file for all figures, as it goes')
    add('--out-picture', type=a_file, help='file for a picture')
    add = commands.add_parser('accuracy', aliases=['table']).add_argument
    number, several = partial(add, type=a_count), partial(add, nargs='+')
    several('--kinds', choices=TRAINED, default=[*TRAINED], help='which')
    several('--tasks', choices=TASKS, default=[*TASKS], help='in order')
    text = "rates to choose from, over the config's"
    for task, (*_, steps, rates) in TASKS.items():
        number(f'--{task}-steps', default=steps, help='of a training')
        several(f'--{task}-rates', type=float, default=rates, help=text)
    text = 'deviations at the start of classifiers to choose from'
    several('--stds', type=float, default=[0.05, 0.15], help=text)
    several('--seeds', type=int, default=[0, 1, 2], help='reported')
    number('--threads', default=1, help='of a training')
    add('--work-dir', type=Path, default='work_dirs/attentions', help='folder')
    add('--cost', type=a_file, help='--json of cost, for times of layers')
    number('--cost-tokens', default=1024, help="those of a picture's times")
    add('--out-picture', type=a_file, help='accuracy over time of a layer')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.command == 'cost':
        return report_cost(args)
    if 'classes' not in args.tasks and 'maps' in args.tasks:
        raise UsageError('--tasks maps needs classes: where maps start from')
    if args.out_picture is not None and args.cost is None:
        raise UsageError('--out-picture needs --cost')
    if args.command == 'accuracy':
        measure_accuracy(args)
    print(accuracy_table(args))
    if args.out_picture is not None:
        draw_accuracy(args)


if __name__ == '__main__':
    run_command_line(main)
