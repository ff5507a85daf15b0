"""The layers and backbones whose cost is followed over the tokens."""

from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor, nn

from anchorformer_mm.analysis.forward_pass import require_device
from anchorformer_mm.analysis.peak_memory import Pass
from anchorformer_mm.models.backbones.anchorformer import AnchorFormer
from anchorformer_mm.models.backbones.clustr import ClusTR
from anchorformer_mm.models.fusing import take_paper_order
from anchorformer_mm.models.layers import (
    AnchorAttention,
    ClusterAttention,
    QueryAnchorAttention,
    SelfAttention,
)
from anchorformer_mm.utils.errors import UsageError

# The kinds of attention, and what AnchorFormer calls them. The last two are
# learned anchors as well: in the order of the paper, and that written plainly.
KINDS = dict(
    anchor='learned',
    query='query',
    vanilla='vanilla',
    cluster=None,
    paper='learned',
    plain='learned',
)
PARTS = ('layer', 'backbone')
DTYPES = ('float32', 'bfloat16', 'float16', 'float64')
PATCH = 16


@dataclass(frozen=True)
class Settings:
    """What runs, and how; one image at a time.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads; must divide ``embed_dims``.
        num_anchors: Anchors of the kinds that have them.
        backward: Whether a pass is forward and backward.
        threads: Of torch on a CPU.
        device: ``'cpu'``, or one of CUDA.
        dtype: Of weights and inputs, of ``DTYPES``.

    Raises:
        UsageError: A value is out of its range, or there is no such device.
    """

    embed_dims: int = 384
    num_heads: int = 6
    num_anchors: int = 30
    backward: bool = False
    threads: int = 1
    device: str = 'cpu'
    dtype: str = 'float32'

    def __post_init__(self) -> None:
        for name in ('embed_dims', 'num_heads', 'num_anchors', 'threads'):
            if getattr(self, name) < 1:
                raise UsageError(
                    f'{name} must be >= 1, got {getattr(self, name)}'
                )
        if self.embed_dims % self.num_heads:
            raise UsageError(
                f'embed_dims must be divisible by num_heads = '
                f'{self.num_heads}, got {self.embed_dims}'
            )
        if self.dtype not in DTYPES:
            raise UsageError(
                f'dtype must be one of {DTYPES}, got {self.dtype!r}'
            )
        require_device(self.device)


def start(settings: Settings, part: str, kind: str, tokens: int) -> Pass:
    """Make a pass ready, with random weights and inputs.

    Args:
        settings: What runs, and how.
        part: Of ``PARTS``. A layer gets tokens (1, n, D), a backbone the
            image whose patches of 16 px are n tokens.
        kind: Of ``KINDS``.
        tokens: How many, n.

    Returns:
        What runs it; it leaves nothing behind.
    """
    torch.manual_seed(0)
    grid = map_of(tokens)
    if part == 'layer':
        network = _layer(settings, kind)
        inputs = torch.randn(1, tokens, settings.embed_dims)
        more = (grid,)
    else:
        size = tuple(PATCH * side for side in grid)
        network = _backbone(settings, kind, size)
        inputs = torch.randn(1, 3, *size)
        more = ()
    target = dict(device=settings.device, dtype=getattr(torch, settings.dtype))
    network.eval()
    network.to(**target)
    # What is before a layer wants its gradient; images need none.
    inputs = inputs.to(**target).requires_grad_(
        settings.backward and part == 'layer'
    )

    def run() -> None:
        with torch.set_grad_enabled(settings.backward):
            outputs = network(inputs, *more)
        if settings.backward:
            _backward(outputs)
            network.zero_grad(set_to_none=True)
            inputs.grad = None
        if inputs.is_cuda:
            torch.cuda.synchronize(inputs.device)

    return run


def map_of(tokens: int) -> tuple[int, int]:
    """Height and width of the squarest map of so many tokens."""
    height = isqrt(tokens)
    while tokens % height:
        height -= 1
    return height, tokens // height


def _backward(outputs: Tensor | tuple[Tensor, ...]) -> None:
    """From half the sum of the squares of the outputs."""
    if isinstance(outputs, Tensor):
        outputs = (outputs,)
    torch.autograd.backward(outputs, [out.detach() for out in outputs])


class PlainAnchorAttention(AnchorAttention):
    """Anchor attention as its equations stand, to be compared with.

    The arithmetic of the authors' release: a sum over tokens, its inverse,
    which is set to 0 where it is infinite, and products from right to left.
    """

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        """(B, n, D) to (B, n, D)."""
        k, v = self.kv(x).chunk(2, dim=-1)
        anchors = self.anchors_of(x).transpose(-2, -1)
        a = (self.split_heads(k) @ anchors * self.scale).softmax(dim=-1)
        inverse = a.sum(dim=-2).reciprocal()
        inverse = inverse.masked_fill(inverse.isinf(), 0).unsqueeze(-1)
        out = a @ (inverse * (a.transpose(-2, -1) @ self.split_heads(v)))
        return self.project(out, v, hw_shape)


def _layer(settings: Settings, kind: str) -> nn.Module:
    sizes = settings.embed_dims, settings.num_heads
    if kind == 'plain':
        return PlainAnchorAttention(*sizes, settings.num_anchors)
    if kind in ('anchor', 'paper'):
        order = 'paper' if kind == 'paper' else 'auto'
        return AnchorAttention(*sizes, settings.num_anchors, order=order)
    if kind == 'query':
        return QueryAnchorAttention(*sizes, settings.num_anchors)
    if kind == 'vanilla':
        return SelfAttention(*sizes)
    return ClusterAttention(*sizes)


def _backbone(
    settings: Settings, kind: str, size: tuple[int, int]
) -> nn.Module:
    if kind == 'cluster':
        return ClusTR('small')
    model = AnchorFormer(
        # That of S, but for its width.
        dict(
            embed_dims=settings.embed_dims,
            num_layers=12,
            num_heads=settings.num_heads,
            feedforward_channels=4 * settings.embed_dims,
        ),
        img_size=size,
        patch_size=PATCH,
        attention=KINDS[kind],
        num_anchors=settings.num_anchors,
        # Patches are then all tokens there are.
        with_cls_token=False,
        out_type='featmap',
    )
    if kind == 'paper':
        take_paper_order(model)
    if kind == 'plain':
        for layer in model.layers:
            layer.attn = _layer(settings, kind)
    return model
