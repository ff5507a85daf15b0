"""Learned position embeddings on other grids than they were made for."""

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
