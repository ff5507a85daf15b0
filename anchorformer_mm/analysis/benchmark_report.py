"""What was measured of networks, as a table and a record."""

from collections.abc import Sequence
from dataclasses import asdict

from anchorformer_mm.analysis.benchmark_results import (
    Result,
    mebibytes,
    size_in_words,
)
from anchorformer_mm.utils.tables import markdown_table


def benchmark_table(results: Sequence[Result]) -> str:
    """Write results as a table of Markdown.

    Ratios are to the first row of the same size and threads: below 1 it
    needs less.
    """
    header = ['config', 'network', 'runtime', 'attention', 'size', 'threads']
    header += ['weights (MiB)', 'memory (MiB)', 'ratio']
    header += ['median (ms)', 'p90 (ms)', 'ratio']
    peers: dict[tuple, Result] = {}
    lines = []
    for result in results:
        conditions = result.conditions
        key = conditions.shape, conditions.threads
        peer = peers.setdefault(key, result)
        lines.append(
            [
                result.name,
                result.task,
                result.runtime,
                result.attention,
                size_in_words(conditions),
                str(conditions.threads) if conditions.on_cpu else '-',
                mebibytes(result.weights),
                mebibytes(result.memory),
                _ratio(result.memory, peer.memory),
                f'{1e3 * result.latency:.1f}',
                f'{1e3 * result.p90:.1f}',
                _ratio(result.latency, peer.latency),
            ]
        )
    return markdown_table(header, lines)


def _ratio(value: float | None, of_peer: float | None) -> str:
    return f'{value / of_peer:.3f}' if value is not None and of_peer else '-'


def compile_times(results: Sequence[Result]) -> str:
    """How long compiling took, in a sentence; empty if nothing was."""
    compiled = [result for result in results if result.runtime == 'compile']
    if not compiled:
        return ''
    times = '; '.join(
        f'{r.name} at {size_in_words(r.conditions)}, '
        f'threads: {r.conditions.threads}, {r.first:.1f} s'
        for r in compiled
    )
    return (
        'First passes, which compile (with what earlier runs left in its '
        f'cache): {times}.'
    )


def record(results: Sequence[Result]) -> list[dict]:
    """Every figure of results, in what JSON can hold."""
    return [
        dict(
            asdict(result),
            attention=result.attention,
            median=result.latency,
            p90=result.p90,
        )
        for result in results
    ]
