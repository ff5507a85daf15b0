"""Windows of a map of tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class TokenWindows:
    """Equal windows that cover a map; the last ones may reach beyond it.

    Attributes:
        hw_shape: Height H and width W of the map, tokens.
        counts: Windows in height and in width.
        size: Height and width of a window, tokens.
    """

    hw_shape: tuple[int, int]
    counts: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def cover(cls, hw_shape: tuple[int, int], side: int) -> 'TokenWindows':
        """Take as few windows as have no side above ``side`` tokens."""
        counts = tuple(ceil_div(length, side) for length in hw_shape)
        size = tuple(
            ceil_div(length, count)
            for length, count in zip(hw_shape, counts, strict=True)
        )
        return cls(tuple(hw_shape), counts, size)

    def __len__(self) -> int:
        return self.counts[0] * self.counts[1]

    def split(self, x: Tensor) -> Tensor:
        """(B, H W, C) -> (B windows, tokens of a window, C), zeros beyond."""
        batch, _, channels = x.shape
        down, across = self.overhang
        x = x.unflatten(1, self.hw_shape)
        x = F.pad(x, (0, 0, 0, across, 0, down))
        (rows, columns), (height, width) = self.counts, self.size
        x = x.reshape(batch, rows, height, columns, width, channels)
        return x.transpose(2, 3).reshape(-1, height * width, channels)

    def join(self, x: Tensor) -> Tensor:
        """(B windows, tokens of a window, C) -> (B, H W, C)."""
        (rows, columns), (height, width) = self.counts, self.size
        x = x.reshape(-1, rows, columns, height, width, x.shape[2])
        x = x.transpose(2, 3).reshape(
            x.shape[0], rows * height, columns * width, -1
        )
        return x[:, : self.hw_shape[0], : self.hw_shape[1]].flatten(1, 2)

    def valid(self, x: Tensor) -> Tensor | None:
        """Which tokens of the windows of ``x`` are of the map.

        Args:
            x: Tokens of the map, shape (B, H W, C).

        Returns:
            Tensor | None: Bool, shape (B windows, tokens of a window); None
            if all are.
        """
        if self.overhang == (0, 0):
            return None
        ones = torch.ones_like(x[:, :, :1], dtype=torch.uint8)
        return self.split(ones)[..., 0].bool()

    @property
    def overhang(self) -> tuple[int, int]:
        """Rows and columns of the windows that the map does not have."""
        return tuple(
            count * side - length
            for count, side, length in zip(
                self.counts, self.size, self.hw_shape, strict=True
            )
        )


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up, of positive numbers."""
    # Not -(-a // b): ONNX divides integers towards zero.
    return (a + b - 1) // b
