"""A forward pass of any network, under stated conditions."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from anchorformer_mm.utils.errors import UsageError

Build = Callable[[], nn.Module]
ATTENTION = ('auto', 'math')


@dataclass(frozen=True)
class Conditions:
    """What a network runs on, and with what.

    Args:
        shape: Height and width of the images, px.
        batch_size: Images of a pass.
        device: ``'cpu'``, or one of CUDA.
        threads: Threads of torch on a CPU.
        attention: What becomes of calls of torch's fused attention:
            ``'auto'``, a kernel that torch chooses, which holds no n x n
            matrix; or ``'math'``, the plain products.

    Raises:
        UsageError: A value is out of its range, or there is no such device.
    """

    shape: tuple[int, int]
    batch_size: int = 1
    device: str = 'cpu'
    threads: int = 1
    attention: str = 'auto'

    def __post_init__(self) -> None:
        for name, values in (
            ('shape', self.shape),
            ('batch_size', (self.batch_size,)),
            ('threads', (self.threads,)),
        ):
            if min(values) < 1:
                raise UsageError(
                    f'{name} must be >= 1, got {getattr(self, name)}'
                )
        if self.attention not in ATTENTION:
            raise UsageError(
                f'attention must be one of {ATTENTION}, got {self.attention!r}'
            )
        try:
            kind = torch.empty(1, device=self.device).device.type
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f'device {self.device!r}: {error}') from error
        if kind not in ('cpu', 'cuda'):
            raise UsageError(
                f"device must be 'cpu' or one of CUDA, got {self.device!r}"
            )

    @property
    def on_cpu(self) -> bool:
        return torch.device(self.device).type == 'cpu'


def prepare(build: Build, device: str) -> nn.Module:
    """Make a network to evaluate on a device.

    Norms that are synchronised between GPUs become plain ones.
    """
    model = revert_sync_batchnorm(build())
    # Of mmpretrain's backbones `eval` returns None.
    model.eval()
    return model.to(device)


def random_images(conditions: Conditions) -> Tensor:
    """Images of noise, shape (B, 3, H, W)."""
    return torch.rand(
        conditions.batch_size, 3, *conditions.shape, device=conditions.device
    )


@torch.no_grad()
def run(model: nn.Module, images: Tensor, attention: str = 'auto') -> None:
    """Run a network, to the end of its work on the device.

    Args:
        model: In evaluation mode.
        images: Its input.
        attention: Of :class:`Conditions`.
    """
    with _attention(attention):
        model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def _attention(kind: str) -> AbstractContextManager:
    if kind == 'auto':
        return nullcontext()
    # Not in torch before 2.3.
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)
