"""What every attention layer of the house shares: sizes and projections."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn


class BaseAttention(nn.Module, ABC):
    """Multi-head token mixer with one input and one output projection.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h; must divide ``embed_dims``.
        qkv_bias: Whether the input projection has a bias.
        attn_drop: Dropout on the attention weights, in [0, 1).
        proj_drop: Dropout on the output, in [0, 1).

    Raises:
        ValueError: An argument is out of its range.

    Shape:
        - Input: (B, n, D), n >= 1; output: (B, n, D).
    """

    # Name of the input projection, and its output channels over D.
    input_projection: ClassVar[tuple[str, int]]

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        *,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(embed_dims=embed_dims, num_heads=num_heads)
        if embed_dims % num_heads:
            raise ValueError(
                'embed_dims must be divisible by num_heads, got '
                f'embed_dims={embed_dims}, num_heads={num_heads}'
            )
        for name, value in (
            ('attn_drop', attn_drop),
            ('proj_drop', proj_drop),
        ):
            if not 0 <= value < 1:
                raise ValueError(f'{name} must be in [0, 1), got {value!r}')
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.scale = (embed_dims // num_heads) ** -0.5

        name, multiple = self.input_projection
        self.add_module(
            name, nn.Linear(embed_dims, multiple * embed_dims, bias=qkv_bias)
        )
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop)

    @abstractmethod
    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        """Mix the tokens.

        Args:
            x: Tokens, shape (B, n, D).
            hw_shape: Height and width of the map whose tokens, row by row,
                are the last of ``x``; only layers that look at neighbours
                need it.

        Returns:
            Tensor: Shape (B, n, D).
        """

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, n, D) -> (B, h, n, d)."""
        b, n, _ = x.shape
        return x.reshape(b, n, self.num_heads, -1).transpose(1, 2)


def check_positive(**arguments: int) -> None:
    """Raise a ValueError that names the first argument not an int >= 1."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f'{name} must be an int >= 1, got {value!r}')
