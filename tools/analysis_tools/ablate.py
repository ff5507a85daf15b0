"""Evaluate a checkpoint without what its attention layers contribute.

Metric of the test set as it is, with all anchors zero (every token then reads
the same), and without attention (its output, bias included, is zero, so that
the blocks consist of their feed-forward networks); of all layers, and of one
after the other. The table goes to the standard output, as Markdown.
"""

import argparse
import sys
from contextlib import ExitStack, redirect_stdout
from functools import partial
from io import StringIO
from typing import TYPE_CHECKING

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

ALL, AS_IS = 'all layers', 'as is'
ZEROED, NONE = 'anchors zeroed', 'without attention'
FIGURES = dict(
    entropy='entropy / log m',
    spread='spread of A',
    gather_spread='spread of gathering',
    dead='dead',
    deviation="logits' deviation",
)


def parse_args() -> argparse.Namespace:
    from anchorformer_mm.engine.launch import add_common_arguments

    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('config', help='config file')
    add('checkpoint', help='checkpoint file')
    text = (
        'attention layers to leave out one by one, counted from 0 (default: '
        'each; none after the flag: only all together)'
    )
    add('--layers', nargs='*', type=int, help=text)
    add_common_arguments(parser)
    return parser.parse_args()


def quiet(cfg: 'Config') -> None:
    """Leave out what every test would write, print or send anew."""
    cfg.log_level = 'WARNING'
    cfg.visualizer = None
    hooks = cfg.get('default_hooks') or {}
    hooks.pop('visualization', None)


def attention_layers(model: 'nn.Module') -> dict[str, 'nn.Module']:
    """Layers of attention by their names, without a wrapper's or 'attn'."""
    from anchorformer_mm.analysis.anchor_state import anchor_layers
    from anchorformer_mm.models.layers import BaseAttention

    anchors = anchor_layers(model)
    layers = {
        name.removeprefix('module.').removesuffix('.attn'): layer
        for name, layer in model.named_modules()
        if name in anchors or isinstance(layer, BaseAttention)
    }
    if not layers:
        raise UsageError('the model has no attention of anchorformer_mm')
    return layers


def choose(names: list[str], numbers: list[int] | None) -> list[str]:
    """Names of the layers that are left out one by one."""
    if numbers is None:
        # A single one is all of them.
        return names if len(names) > 1 else []
    for i in numbers:
        if not 0 <= i < len(names):
            raise UsageError(
                f'--layers must be in 0 to {len(names) - 1}, {names[0]} to '
                f'{names[-1]}; got {i}'
            )
    return [names[i] for i in numbers]


def watch(layer: 'nn.Module', seen: list) -> 'RemovableHandle':
    """Append the figures of every batch, and how many images it has."""
    from anchorformer_mm.analysis.anchor_state import (
        anchor_figures,
        watch_weights,
    )

    def take(weights: tuple['Tensor', ...], *args, **kwargs) -> None:
        figures = anchor_figures(*weights).items()
        figures = {key: float(value.mean()) for key, value in figures}
        seen.append((len(weights[0]), figures))

    return watch_weights(layer, take)


def mean_figures(seen: list) -> dict[str, float]:
    images = sum(count for count, _ in seen)
    return {
        key: sum(count * figures[key] for count, figures in seen) / images
        for key in FIGURES
    }


def run_tests(
    runner: 'Runner', changes: dict[tuple[str, str], list]
) -> dict[tuple[str, str], dict]:
    """Metrics of a test for each list of changes, which end with it."""
    from mmengine.dist import is_main_process
    from rich.console import Console
    from rich.progress import track

    metrics, console = {}, Console(stderr=True, quiet=not is_main_process())
    for key, parts in track(changes.items(), 'tests', console=console):
        # Tables of all classes, which libraries print after each test.
        with ExitStack() as stack, redirect_stdout(StringIO()):
            for change in parts:
                stack.enter_context(change())
            metrics[key] = runner.test()
    return metrics


def in_table(
    names: list[str], metrics: dict[tuple[str, str], dict], seen: dict
) -> str:
    """Lay out a metric of each test, and the figures of each layer."""
    from anchorformer_mm.analysis.pictures import METRICS, in_words
    from anchorformer_mm.utils.text import markdown_table

    found = metrics[ALL, AS_IS]
    if not found:
        raise UsageError('test_evaluator of the config gives no metric')
    metric = next((m for m in METRICS if m in found), next(iter(found)))
    kinds = [AS_IS, ZEROED, NONE] if seen else [AS_IS, NONE]
    lines = []
    for name in (ALL, *names):
        tests = [metrics.get((name, kind)) for kind in kinds]
        cells = [in_words(metric, t[metric]) if t else '' for t in tests]
        if seen.get(name):
            figures = mean_figures(seen[name])
            cells += [f'{figures[key]:.3f}' for key in FIGURES]
        elif seen:
            cells += [''] * len(FIGURES)
        lines.append([name, *cells])
    header = [metric, *kinds, *(FIGURES.values() if seen else ())]
    return markdown_table(header, lines)


def ablate(args: argparse.Namespace) -> str:
    """Run all tests; gives what is to be printed, by one of the processes."""
    from mmengine.dist import is_main_process

    from anchorformer_mm.analysis.anchor_state import (
        tell_tokens_apart,
        zero_anchors,
        zero_output,
    )
    from anchorformer_mm.engine import launch
    from anchorformer_mm.utils.checkpoint import require_checkpoint

    cfg = launch.load_config(args, splits=('test',))
    require_checkpoint(args.checkpoint)
    cfg.load_from, cfg.resume = args.checkpoint, False
    quiet(cfg)
    launch.join_processes(cfg)
    runner = launch.build_runner(cfg, testing=True)
    layers = attention_layers(runner.model)
    chosen = choose(list(layers), args.layers)
    if not args.skip_data_check:
        # Needs the library of the config.
        from anchorformer_mm.datasets import checks

        findings = checks.check_runner(runner, ['test'])
        checks.report_findings(findings, runner.logger)
    seen = {n: [] for n in layers if hasattr(layers[n], 'weights_of')}
    watching = [partial(watch, layers[name], seen[name]) for name in seen]
    changes = {(ALL, AS_IS): watching}
    for row, names in {ALL: list(layers), **{n: [n] for n in chosen}}.items():
        zeroed = [partial(zero_anchors, layers[n]) for n in names if n in seen]
        if zeroed:
            changes[row, ZEROED] = zeroed
        changes[row, NONE] = [partial(zero_output, layers[n]) for n in names]
    metrics = run_tests(runner, changes)
    lines = [in_table(list(layers), metrics, seen)]
    for name, figures in seen.items():
        if figures and not tell_tokens_apart(mean_figures(figures)):
            lines.append(f'anchors of {name} do not tell tokens apart')
    return '\n\n'.join(lines) if is_main_process() else ''


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    from anchorformer_mm.engine.launch import leave_processes

    args = parse_args()
    # What libraries print is not of the table.
    with redirect_stdout(sys.stderr):
        table = ablate(args)
    leave_processes()
    if table:
        print(table)


if __name__ == '__main__':
    run_command_line(main)
