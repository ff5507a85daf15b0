"""Learned position embeddings on other grids than they were made for."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_position_embedding(
    pos_embed: Tensor,
    source: tuple[int, int],
    target: tuple[int, int],
    *,
    mode: str = 'bicubic',
) -> Tensor:
    """Interpolate a grid of position embeddings.

    Args:
        pos_embed: Embeddings of the grid, row by row, without those of class
            tokens; shape (1, h * w, D).
        source: Its height and width (h, w).
        target: Height and width wanted (H, W).
        mode: As for :func:`torch.nn.functional.interpolate`.

    Returns:
        Tensor: Shape (1, H * W, D), dtype of ``pos_embed``; the same tensor
        where the grids are equal.
    """
    if tuple(source) == tuple(target):
        return pos_embed
    grid = pos_embed.unflatten(1, source).permute(0, 3, 1, 2)
    # Interpolation has no half-precision kernel on every device.
    grid = F.interpolate(
        grid.float(), size=tuple(target), mode=mode, align_corners=False
    )
    return grid.flatten(2).transpose(1, 2).to(pos_embed.dtype)


def fit_position_embedding(
    pos_embed: Tensor,
    class_tokens: Sequence[str],
    own: Mapping[str, Tensor],
    source: Sequence[int] | None,
    target: tuple[int, int],
    *,
    mode: str = 'bicubic',
) -> Tensor:
    """Bring a checkpoint's position embedding to the tokens of a model.

    Class tokens that only the checkpoint has are dropped; those that only
    the model has keep their own embedding.

    Args:
        pos_embed: The checkpoint's: its t class tokens first, then its grid
            row by row; shape (1, t + h * w, D).
        class_tokens: Names of its class tokens, in their order.
        own: Embeddings that the T class tokens of the model have, by name,
            in their order; each of shape (1, 1, D).
        source: Height and width (h, w) of the checkpoint's grid, None if it
            does not tell: then it must be a square.
        target: Height and width (H, W) of the model's grid.
        mode: As for :func:`resize_position_embedding`.

    Returns:
        Tensor: Shape (1, T + H * W, D), dtype of ``pos_embed``.

    Raises:
        ValueError: The checkpoint has no such grid.
    """
    tokens = pos_embed.shape[1] - len(class_tokens)
    if source is None:
        source = (int(max(tokens, 0) ** 0.5),) * 2
    if tokens < 1 or source[0] * source[1] != tokens:
        raise ValueError(
            f'pos_embed of the checkpoint has {pos_embed.shape[1]} tokens, '
            f'{len(class_tokens)} of them class tokens: the other {tokens} '
            f'are not a grid of {source[0]} x {source[1]} patches. Only '
            'square grids can be resized unless the checkpoint tells its '
            'own; build the model with the img_size it was trained at'
        )
    theirs = {
        name: pos_embed[:, i, None] for i, name in enumerate(class_tokens)
    }
    slots = [
        theirs[name] if name in theirs else embedding.to(pos_embed)
        for name, embedding in own.items()
    ]
    grid = resize_position_embedding(
        pos_embed[:, len(class_tokens) :], tuple(source), target, mode=mode
    )
    return torch.cat((*slots, grid), dim=1)
