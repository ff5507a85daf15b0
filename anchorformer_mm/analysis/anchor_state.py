"""State of a model's anchors in figures, and what it is without them.

Anchor attention may learn nothing while the metric looks well: its weights A
stay uniform, or one anchor takes all of every token. Every token then reads
the same.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# Tokens with a smaller spread read the same but for noise.
LEAST_SPREAD = 0.05
# Part of an even share of all tokens, below which an anchor is dead.
DEAD = 0.1
# Parameters that are zero where no anchor differs from another.
ANCHORS = ('anchors', 'gather_anchors', 'q.weight', 'q.bias') + (
    'attention_biases_h',
    'attention_biases_w',
)


def anchor_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Layers with a method ``weights_of``, by their names in the model.

    The method takes what the layer's ``forward`` takes, and gives the logits
    of reading, A and the gather weights, each of shape (B, h, n, m): A sums
    to 1 over the anchors, gather weights over the tokens.
    """
    return {
        name: layer
        for name, layer in model.named_modules()
        if callable(getattr(layer, 'weights_of', None))
    }


def watch_weights(
    layer: nn.Module, take: Callable[..., None]
) -> RemovableHandle:
    """Call ``take(weights, *args, **kwargs)`` whenever a layer runs.

    ``weights`` are those of its ``weights_of``; the rest is what the layer was
    given. They are made anew beside the layer, without gradients, and leave
    it as it is, running statistics of its norms included.
    """

    def made(layer, args, kwargs, output):
        with torch.no_grad(), ExitStack() as stack:
            for norm in layer.modules():
                if hasattr(norm, 'track_running_stats'):
                    still = patch.object(norm, 'track_running_stats', False)
                    stack.enter_context(still)
            weights = layer.weights_of(*args, **kwargs)
        take(weights, *args, **kwargs)

    return layer.register_forward_hook(made, with_kwargs=True)


def anchor_figures(
    logits: Tensor, read: Tensor, gather: Tensor
) -> dict[str, Tensor]:
    r"""Figures of each head, means over a batch.

    Args:
        logits: Of reading out, shape (B, h, n, m).
        read: A, their softmax over the anchors.
        gather: Weights with which anchors gather, sums over tokens are 1.

    Returns:
        dict[str, Tensor]: Of shape (h,), fp32 at least:

        - ``entropy`` of a token's weights over log m: 1 is uniform, 0 one-hot;
        - ``spread`` of A over tokens, see :func:`spread_of`: 0 is the same
          for every token, 1 one-hot and evenly on all anchors;
        - ``gather_spread``, that of gather weights over anchors: 0 is the
          same for every anchor, so that all have gathered the same;
        - ``dead``, part of the anchors with less than a tenth of an even
          share of the batch;
        - ``deviation``, the standard deviation of logits over tokens.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logits, read, gather = (t.to(dtype) for t in (logits, read, gather))
    m = read.shape[-1]
    most = torch.tensor(m, dtype=dtype).log()
    entropy = torch.special.entr(read).sum(-1).mean((0, 2))
    return dict(
        # A single anchor is uniform.
        entropy=entropy / most if m > 1 else torch.ones_like(entropy),
        spread=spread_of(read),
        gather_spread=spread_of(gather.transpose(-2, -1)),
        dead=(read.mean((0, 2)) * m < DEAD).to(dtype).mean(-1),
        deviation=logits.std(2, correction=0).mean((0, 2)),
    )


def spread_of(weights: Tensor) -> Tensor:
    r"""Mean distance of distributions from their mean, in [0, 1].

    Weights (B, h, r, c) are r distributions over c. The distance is that of
    total variation, half the sum of absolute differences; of r one-hot ones
    that are as different as can be, it is :math:`1 - 1 / \min(r, c)`, by
    which it is divided. Shape (h,); 0 where r or c is 1.
    """
    fewest = min(weights.shape[-2:])
    apart = (weights - weights.mean(-2, keepdim=True)).abs().sum(-1) / 2
    return apart.mean((0, 2)) / (1 - 1 / fewest if fewest > 1 else 1)


def are_uniform(figures: Mapping[str, float]) -> bool:
    """Tell anchors with uniform weights from those with one-hot weights."""
    return figures['entropy'] > 0.5


def tell_tokens_apart(figures: Mapping[str, float]) -> bool:
    """Whether different tokens read different things out of the anchors."""
    least = min(figures['spread'], figures['gather_spread'])
    return not least < LEAST_SPREAD


def in_words(figures: Mapping[str, float]) -> str:
    """Write entropy and spread, and that of gathering where it matters."""
    text = f'entropy {figures["entropy"]:.2f}, spread {figures["spread"]:.2f}'
    if figures['gather_spread'] < LEAST_SPREAD <= figures['spread']:
        text += f', of gathering {figures["gather_spread"]:.2f}'
    return text


def zero_anchors(layer: nn.Module) -> ExitStack:
    """Have a layer run with all anchors zero until the stack is closed.

    A is uniform then, and every token reads the same. Weights are exchanged
    only while the layer runs.
    """
    parameters = dict(layer.named_parameters())
    chosen = [parameters[name] for name in ANCHORS if name in parameters]
    kept = []

    def exchange(layer, args):
        kept[:] = [p.data for p in chosen]
        for p in chosen:
            p.data = torch.zeros_like(p)

    def restore(layer, args, output):
        for p, data in zip(chosen, kept, strict=True):
            p.data = data

    stack = ExitStack()
    stack.enter_context(layer.register_forward_pre_hook(exchange))
    stack.enter_context(layer.register_forward_hook(restore, always_call=True))
    return stack


def zero_output(layer: nn.Module) -> RemovableHandle:
    """Have a layer give zeros until the handle is removed."""
    return layer.register_forward_hook(
        lambda layer, args, output: torch.zeros_like(output)
    )
