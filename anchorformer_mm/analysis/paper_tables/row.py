"""A row of a table: what is printed of a model, and how it is built here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

MACS, TWICE = 'MACs', '2 x MACs'


@dataclass(frozen=True)
class Row:
    """A model as it is printed, and as it is built here.

    Attributes:
        name: As in the paper.
        claimed: Printed figures: ``'params_m'`` (millions), ``'flops_g'``
            (1e9) and accuracies in percent, as far as they are printed.
        config: Config to build it from: one of this project, such as
            ``'configs/anchorformer_t_in1k.py'``, or of a library, with
            ``::``. None: it is built by ``constructor``, or not at all.
        overrides: Of the config, keys with dots and their values.
        constructor: Function that builds it without a config.
        what: Words for what overrides or constructor make of it.
        shape: Height and width of its image, px; None for the table's.
        claimed_by: Who prints the figures.
        flops_are: What ``'flops_g'`` counts: :data:`MACS` or :data:`TWICE`.
        reason: Why figures are off by more than 5 %; of a row that is not
            built, why not.
        beside: Name of the row that it is compared with.
        trained: Accuracies in percent that a run of this project measured.
    """

    name: str
    claimed: Mapping[str, float] = field(default_factory=dict)
    config: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    constructor: Callable[[], nn.Module] | None = None
    what: str = ''
    shape: tuple[int, int] | None = None
    claimed_by: str = 'the paper'
    flops_are: str = MACS
    reason: str = ''
    beside: str = ''
    trained: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_built(self) -> bool:
        """Whether there is code for it here."""
        return self.config is not None or self.constructor is not None


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        shape: Height and width of the images, px, unless a row says other.
        accuracies: Keys of ``Row.claimed`` and their headings; the first is
            the one that is plotted.
        rows: In the paper's order.
    """

    shape: tuple[int, int]
    accuracies: Mapping[str, str]
    rows: Sequence[Row]


def printed(
    params_m: float | None, flops_g: float | None, **accuracies: float
) -> dict[str, float]:
    """Printed figures without those that are left open.

    Args:
        params_m: Parameters, millions.
        flops_g: Operations, 1e9.
        accuracies: Percent.
    """
    claimed = dict(params_m=params_m, flops_g=flops_g, **accuracies)
    return {key: v for key, v in claimed.items() if v is not None}
