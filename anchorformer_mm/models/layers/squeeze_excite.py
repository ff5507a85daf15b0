"""Squeeze-and-excitation with a hard gate, as ESNet and LCNet have it."""

from torch import Tensor, nn


class SqueezeExcite(nn.Sequential):
    """Channel attention: a gate in [0, 1] from the map's mean.

    Shape:
        - Input: (B, C, H, W); output: (B, C, H, W).
    """

    def __init__(self, channels: int, ratio: int = 4) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // ratio, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // ratio, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)
