"""Networks to measure, and what was measured of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anchorformer_mm.analysis.forward_pass import Build, Conditions


@dataclass(frozen=True)
class Candidate:
    """A network to measure.

    Args:
        name: What it is called.
        build: What makes it. On a CPU it is sent to other processes. None if
            there is only a file.
        export: What writes it as an ONNX file, given the path and the
            conditions; None if nothing does.
        ends_in: What the file has beyond the network.
        read: Of a file without ``build``, what tells what it computes, and
            the bytes of its weights.
    """

    name: str
    build: Build | None = None
    export: Callable[[Path, Conditions], None] | None = None
    ends_in: str = ''
    read: Callable[[], tuple[str, int]] | None = None

    def facts(self) -> tuple[str, int]:
        """What it computes, and the bytes of its weights."""
        if self.build is None:
            return self.read()
        network = self.build()
        tensors = (*network.parameters(), *network.buffers())
        weights = sum(t.numel() * t.element_size() for t in tensors)
        task = getattr(network, 'task', 'network')
        return task + self.ends_in, weights


@dataclass(frozen=True)
class Result:
    """What was measured of a network.

    Attributes:
        name: The network.
        runtime: Of :data:`~anchorformer_mm.analysis.runtimes.RUNTIMES`.
        conditions: How it ran.
        task: What it computes.
        weights: Parameters and buffers, bytes.
        memory: Peak of a pass beyond weights and images, bytes; None where
            nothing tells it.
        first: Time of the first pass, seconds; with what is compiled in it.
        seconds: Time of each pass that counts.
    """

    name: str
    runtime: str
    conditions: Conditions
    task: str
    weights: int
    memory: int | None
    first: float
    seconds: list[float] = field(default_factory=list)

    @property
    def latency(self) -> float:
        """Median time of a pass, seconds."""
        return float(np.median(self.seconds))

    @property
    def p90(self) -> float:
        """Time that 90 % of the passes keep within, seconds."""
        return float(np.percentile(self.seconds, 90))

    @property
    def attention(self) -> str:
        """How torch's fused attention ran; an ONNX file has none."""
        return '-' if self.runtime == 'onnx' else self.conditions.attention

    @property
    def label(self) -> str:
        size = size_in_words(self.conditions)
        how = self.runtime
        if self.runtime == 'eager':
            how += f', {self.conditions.attention}'
        return f'{self.name} at {size} ({how})'


def size_in_words(conditions: Conditions) -> str:
    """Such as ``'224 x 224'``."""
    return '{} x {}'.format(*conditions.shape)


def mebibytes(size: int | None) -> str:
    """Bytes in MiB, to one decimal."""
    return '-' if size is None else f'{size / 2**20:.1f}'
