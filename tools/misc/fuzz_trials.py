"""One draw of arguments, and whether the module does with it what it says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module

import torch
from hypothesis import strategies as st
from mmengine.model import BaseModule, revert_sync_batchnorm
from torch import Tensor, nn

from anchorformer_mm.utils.errors import UsageError

CLEAR_ERRORS = (ValueError, TypeError, UsageError)
FILLS = dict(
    noise=torch.randn,
    zeros=torch.zeros,
    equal=torch.ones,
    large=lambda *shape: 100 * torch.randn(*shape),
)
LARGEST = 65_536  # tokens
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Wrong:
    """An argument out of its range.

    Attributes:
        arguments: What is given in place of what is valid.
        name: What the error must name.
        value: Likewise; None if the error need not show it.
    """

    arguments: dict
    name: str
    value: object = None


@dataclass(frozen=True)
class Trial:
    """What is built, and what it is shown.

    Attributes:
        module: Name of the subject.
        arguments: Of its constructor.
        wrong: The one among them that it must refuse, if any.
        size: Images, height and width, of images or of maps of tokens.
        dtype: Of weights and input.
        training: Whether in training or evaluation mode.
        fill: What is in the input, of ``FILLS``.
    """

    module: str
    arguments: dict
    wrong: Wrong | None
    size: tuple[int, int, int]
    dtype: torch.dtype
    training: bool
    fill: str


@dataclass(frozen=True)
class Subject:
    """A public module, its arguments, and how it is called.

    Attributes:
        path: Where the class is, ``module:name``.
        valid: Draws arguments.
        wrong: Draws one argument that must be refused.
        show: Gives the module, with its arguments, an input of some size,
            made by the last argument, and returns the output.
        least: Smallest side of an input, for the arguments.
        most: Tokens or pixels of the rare large inputs, for the arguments.
        trains: Whether it can be trained, for the arguments.
    """

    path: str
    valid: st.SearchStrategy[dict]
    wrong: st.SearchStrategy[Wrong]
    show: Callable[[nn.Module, dict, tuple, Callable], object]
    least: Callable[[dict], int] = field(default=lambda arguments: 1)
    most: Callable[[dict], int] = field(default=lambda arguments: LARGEST)
    trains: Callable[[dict], bool] = field(default=lambda arguments: True)

    def build(self, arguments: dict) -> nn.Module:
        module, name = self.path.split(':')
        return getattr(import_module(module), name)(**arguments)


@st.composite
def trials(
    draw: st.DrawFn, name: str, subject: Subject, *, large: bool = True
) -> Trial:
    """Draw a trial of a subject, in one half of the cases a valid one.

    Args:
        name: Of the subject.
        subject: What is tried.
        large: Whether one valid trial in 200 has an input as large as
            ``subject.most`` allows.
    """
    arguments = draw(subject.valid)
    wrong = draw(subject.wrong) if draw(st.booleans()) else None
    if wrong is not None:
        arguments = arguments | wrong.arguments
    batch, training = 1, False
    is_large = large and draw(st.sampled_from([False] * 199 + [True]))
    if wrong is not None:
        size = (1, 1)
    elif is_large:
        height = draw(st.sampled_from([1, 16, 251, 256]))
        height = max(height, subject.least(arguments))
        size = (height, subject.most(arguments) // height)
    else:
        batch = draw(st.integers(1, 3))
        # Batch statistics are of more than one value.
        training = (
            batch > 1 and subject.trains(arguments) and draw(st.booleans())
        )
        side = st.integers(0, 1) | st.integers(0, 24)
        thin = st.tuples(st.just(0), st.integers(25, 200))
        pair = draw(st.tuples(side, side) | thin | thin.map(lambda p: p[::-1]))
        least = subject.least(arguments)
        size = tuple(least + extra for extra in pair)
    dtype = draw(st.sampled_from(DTYPES))
    fills = ['noise']
    if dtype != torch.float16:
        fills += ['large']
    # Batch norms divide by what equal pixels do not have: a variance.
    if dtype == torch.float32 or not training:
        fills += ['zeros', 'equal']
    fill = draw(st.sampled_from(fills))
    return Trial(name, arguments, wrong, (batch, *size), dtype, training, fill)


def judge(trial: Trial, subject: Subject) -> str:
    """Try it.

    Returns:
        str: ``'valid'`` if it runs forward and backward and everything is
        finite, of fp16 the outputs; ``'invalid'`` if it is refused as it
        should; ``'no fp16'`` if torch lacks a kernel of half precision.

    Raises:
        AssertionError: It does anything else.
    """
    if trial.wrong is not None:
        _require_refusal(trial, subject)
        return 'invalid'
    try:
        _run(trial, subject)
    except (NotImplementedError, RuntimeError) as error:
        if 'not implemented for' in str(error) and 'Half' in str(error):
            return 'no fp16'
        raise AssertionError(f'{type(error).__name__}: {error}') from error
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f'{type(error).__name__}: {error}') from error
    return 'valid'


def _require_refusal(trial: Trial, subject: Subject) -> None:
    wrong = trial.wrong
    try:
        subject.build(trial.arguments)
    except CLEAR_ERRORS as error:
        text = str(error)
        shown = wrong.value is None or repr(wrong.value) in text
        assert wrong.name in text and shown, (
            f'the error does not name {wrong.name} or {wrong.value!r}: '
            f'{type(error).__name__}: {error}'
        )
    except Exception as error:
        raise AssertionError(
            f'no clear error but {type(error).__name__}: {error}'
        ) from error
    else:
        raise AssertionError(f'{wrong.name}={wrong.value!r} was accepted')


def _run(trial: Trial, subject: Subject) -> None:
    torch.manual_seed(0)
    # Without a group of processes there is nothing to synchronise.
    module = revert_sync_batchnorm(subject.build(trial.arguments))
    if isinstance(module, BaseModule):
        module.init_weights()
    module.to(trial.dtype).train(trial.training)
    inputs = []

    def make(*shape: int) -> Tensor:
        x = FILLS[trial.fill](*shape).to(trial.dtype)
        inputs.append(x.requires_grad_())
        return x

    outputs = list(
        _tensors(subject.show(module, trial.arguments, trial.size, make))
    )
    assert outputs, 'there is no output'
    for i, y in enumerate(outputs):
        assert y.isfinite().all(), f'output {i} is not finite'
    sum(y.float().square().mean() for y in outputs).backward()
    for i, x in enumerate(inputs):
        assert x.grad is not None, f'no gradient reaches input {i}'
    if trial.dtype == torch.float16:
        # Untrained and unscaled, gradients pass its 65,504 where a norm
        # enlarges small values.
        return
    for i, x in enumerate(inputs):
        assert x.grad.isfinite().all(), f'gradient of input {i} is not finite'
    for name, weight in module.named_parameters():
        if trial.dtype == torch.bfloat16 and weight.ndim == 4:
            # On CPUs torch's holds what was in memory, where a convolution
            # with a stride makes a map of one column.
            continue
        assert weight.grad is None or weight.grad.isfinite().all(), (
            f'gradient of {name} is not finite'
        )


def _tensors(outputs: object) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    else:
        for part in outputs:
            yield from _tensors(part)
