"""Layers of one kind, watched while a model runs once."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from anchorformer_mm.utils.errors import UsageError


def run_watched(
    model: nn.Module,
    layers: dict[str, nn.Module],
    watch: Callable[[nn.Module, str, dict[str, Any], ExitStack], None],
    kind: str,
    *args,
    **kwargs,
) -> list[Any]:
    """Run a model once, without gradients, and keep what its layers make.

    Args:
        model: Any model.
        layers: Those to watch, by name.
        watch: Takes a layer, its name, a dict, in which it shall put under
            this name what the layer makes, and a stack, to which it gives
            what undoes the watching.
        kind: What the layers have, for the error.
        *args: Passed to the model.
        **kwargs: Passed to the model.

    Returns:
        list: What the layers made, in the order in which they ran.

    Raises:
        UsageError: None of the layers ran.
    """
    found = {}
    with ExitStack() as stack, torch.no_grad():
        for name, layer in layers.items():
            watch(layer, name, found, stack)
        model(*args, **kwargs)
    if not found:
        raise UsageError(f'none of the {len(layers)} layers with {kind} ran')
    return list(found.values())


def shadow(
    layer: nn.Module, method: str, replacement: Callable, stack: ExitStack
) -> None:
    """Call ``replacement(original, ...)`` until ``stack`` is left."""
    # In the instance; the method of the class stays behind it.
    setattr(layer, method, partial(replacement, getattr(layer, method)))
    stack.callback(vars(layer).pop, method)


def pick_layers(
    made: Sequence[Any], indices: Iterable[int], kind: str
) -> dict[int, Any]:
    """What some layers made, by their number.

    Args:
        made: From :func:`run_watched`; has a ``name``.
        indices: Numbers of layers, in the order in which they ran.
        kind: What the layers have, for the error.

    Raises:
        UsageError: There is no such layer.
    """
    picked = {}
    for i in indices:
        if not 0 <= i < len(made):
            raise UsageError(
                f'the layers with {kind} are 0 to {len(made) - 1}, '
                f'{made[0].name} to {made[-1].name}; got {i}'
            )
        picked[i] = made[i]
    return picked
