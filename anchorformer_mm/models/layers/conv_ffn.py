"""A feed-forward network that looks at its neighbours."""

from math import prod

from mmcv.cnn import build_activation_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn


class ConvFFN(BaseModule):
    """``fc2(act(h + conv(h)))`` with ``h = fc1(x)``, conv depthwise 3x3.

    The zeros around the map tell tokens where they are: ClusTR has no other
    position embedding.

    Args:
        embed_dims: Channels D of the tokens.
        feedforward_channels: Channels of h.
        act_cfg: Activation.
        ffn_drop: Dropout after the activation and on the output.
        drop_path_rate: Probability to skip the network for an image.
        init_cfg: Initialisation; by default of the convolution alone.

    Shape:
        - Input: (B, n, D), the tokens of a map row by row; output: the same.
    """

    def __init__(
        self,
        embed_dims: int,
        feedforward_channels: int,
        *,
        act_cfg: dict | None = None,
        ffn_drop: float = 0.0,
        drop_path_rate: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            # Of the 9 inputs of a depthwise convolution's output.
            init_cfg or dict(type='Kaiming', layer='Conv2d', mode='fan_in')
        )
        hidden = feedforward_channels
        self.fc1 = nn.Linear(embed_dims, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = build_activation_layer(act_cfg or dict(type='GELU'))
        self.fc2 = nn.Linear(hidden, embed_dims)
        self.drop = nn.Dropout(ffn_drop)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int], identity: Tensor
    ) -> Tensor:
        """Transform the tokens and add ``identity``.

        Args:
            x: Tokens, shape (B, n, D).
            hw_shape: Height and width of their map.
            identity: What is added, shape (B, n, D).

        Returns:
            Tensor: Shape (B, n, D).

        Raises:
            ValueError: ``hw_shape`` is not that of n tokens.
        """
        if hw_shape is None or prod(hw_shape) != x.shape[1]:
            raise ValueError(
                f'hw_shape must be that of a map of {x.shape[1]} tokens, got '
                f'{hw_shape}'
            )
        h = self.fc1(x)
        feature = h.transpose(1, 2).unflatten(2, hw_shape)
        h = h + self.conv(feature).flatten(2).transpose(1, 2)
        h = self.fc2(self.drop(self.act(h)))
        return identity + self.drop_path(self.drop(h))
