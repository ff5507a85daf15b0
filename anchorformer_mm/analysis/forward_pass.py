"""A forward pass of any network, under stated conditions."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import cv2
import torch
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from anchorformer_mm.analysis.raw_outputs import raw_outputs
from anchorformer_mm.apis import (
    require_image,
)
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
        threads: Threads on a CPU.
        attention: What becomes of calls of torch's fused attention:
            ``'auto'``, a kernel that torch chooses, which holds no n x n
            matrix; or ``'math'``, the plain products.
        image: File of the image that all of a pass are, resized to
            ``shape``; None for noise, the same each time.

    Raises:
        UsageError: A value is out of its range, there is no such device, or
            the image cannot be read.
    """

    shape: tuple[int, int]
    batch_size: int = 1
    device: str = 'cpu'
    threads: int = 1
    attention: str = 'auto'
    image: str | None = None

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
        require_device(self.device)
        if self.image is not None:
            require_image(self.image)

    @property
    def on_cpu(self) -> bool:
        return torch.device(self.device).type == 'cpu'


def require_device(device: str) -> None:
    """Check that there is a device, and that it is a CPU or one of CUDA.

    Raises:
        UsageError: It is not.
    """
    try:
        kind = torch.empty(1, device=device).device.type
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f'device {device!r}: {error}') from error
    if kind not in ('cpu', 'cuda'):
        raise UsageError(
            f"device must be 'cpu' or one of CUDA, got {device!r}"
        )


def prepare(build: Build, device: str) -> nn.Module:
    """Make a network to evaluate on a device.

    Norms that are synchronised between GPUs become plain ones.
    """
    model = revert_sync_batchnorm(build())
    # Of mmpretrain's backbones `eval` returns None.
    model.eval()
    return model.to(device)


def make_images(conditions: Conditions) -> Tensor:
    """The images of a pass: RGB from 0 to 255, float32, (B, 3, H, W)."""
    height, width = conditions.shape
    if conditions.image is None:
        shape = (conditions.batch_size, 3, height, width)
        noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        images = 255 * noise
    else:
        pixels = cv2.resize(cv2.imread(conditions.image), (width, height))
        image = torch.from_numpy(pixels).flip(-1).permute(2, 0, 1).float()
        images = image.repeat(conditions.batch_size, 1, 1, 1)
    return images.to(conditions.device)


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


class RawOutputs(nn.Module):
    """A network on its own, from images to what its forward pass returns.

    That of a model of OpenMMLab ends with the raw outputs of its heads: no
    decoding of boxes, no suppression, no resizing to the image.

    Args:
        model: A detector, a segmentor or a classifier; or any network that
            is called with images, such as a backbone.
        task: What that is called.

    Shape:
        - Input: images, (B, 3, H, W), from 0 to 255; the network sees them
          from 0 to 1.
    """

    def __init__(self, model: nn.Module, task: str = 'raw outputs') -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, images: Tensor) -> object:
        return raw_outputs(self.model, images / 255)
