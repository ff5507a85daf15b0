"""The one pre-norm block of the house; the attention is injected."""

from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule
from torch import Tensor, nn

from anchorformer_mm.models.argument_checks import (
    check_above_zero,
    check_rates,
)
from anchorformer_mm.models.layers.conv_ffn import ConvFFN


class TransformerBlock(BaseModule):
    """Pre-norm transformer block: ``x + attn(ln1(x))``, ``x + ffn(ln2(x))``.

    Args:
        attn: Token mixer, (B, n, D) and the map's size to (B, n, D); its
            ``embed_dims`` is the block's.
        mlp_ratio: Hidden channels of the feed-forward network over D.
        mlp_dwconv: Whether there is a depthwise convolution between these
            (:class:`ConvFFN`); the map's size is then needed.
        drop_rate: Dropout in the feed-forward network.
        drop_path_rate: Probability to skip a branch for an image.
        norm_cfg: Normalisation, applied to the last dimension.
        act_cfg: Activation of the feed-forward network.
        init_cfg: Initialisation.

    Raises:
        ValueError: An argument is out of its range.

    Shape:
        - Input: (B, n, D); output: (B, n, D).
    """

    def __init__(
        self,
        attn: nn.Module,
        *,
        mlp_ratio: float = 4.0,
        mlp_dwconv: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_above_zero(mlp_ratio=mlp_ratio)
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        embed_dims = attn.embed_dims
        channels = round(embed_dims * mlp_ratio)
        if channels < 1:
            raise ValueError(
                f'mlp_ratio must leave a channel of {embed_dims}, got '
                f'{mlp_ratio!r}'
            )
        norm_cfg = norm_cfg or dict(type='LN', eps=1e-6)
        self.ln1 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.attn = attn
        self.drop_path = DropPath(drop_path_rate)
        self.ln2 = build_norm_layer(norm_cfg, embed_dims)[1]
        act_cfg = act_cfg or dict(type='GELU')
        self.mlp_dwconv = mlp_dwconv
        if mlp_dwconv:
            self.ffn = ConvFFN(
                embed_dims,
                channels,
                act_cfg=act_cfg,
                ffn_drop=drop_rate,
                drop_path_rate=drop_path_rate,
            )
        else:
            self.ffn = FFN(
                embed_dims=embed_dims,
                feedforward_channels=channels,
                act_cfg=act_cfg,
                ffn_drop=drop_rate,
                dropout_layer=dict(type='DropPath', drop_prob=drop_path_rate),
            )

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        """Mix, then transform.

        Args:
            x: Tokens, shape (B, n, D).
            hw_shape: Height and width of the map in ``x``, for the attention
                and the convolution.

        Returns:
            Tensor: Shape (B, n, D).
        """
        x = x + self.drop_path(self.attn(self.ln1(x), hw_shape))
        if self.mlp_dwconv:
            return self.ffn(self.ln2(x), hw_shape, x)
        return self.ffn(self.ln2(x), identity=x)
