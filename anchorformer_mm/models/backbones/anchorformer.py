"""AnchorFormer on the columnar graph of DeiT (arXiv 2505.16463, table 1)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import PatchEmbed
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from anchorformer_mm.models.argument_checks import (
    check_one_of,
    check_positive,
    check_rates,
    check_within,
    named_or_dict,
    one_for_each,
)
from anchorformer_mm.models.backbones.staged_backbone import run_block
from anchorformer_mm.models.layers import (
    TransformerBlock,
    build_attention,
    fit_position_embedding,
    resize_position_embedding,
)
from anchorformer_mm.models.layers.transformer_block import same_grid
from anchorformer_mm.registry import MODELS

_ARCH_KEYS = ('embed_dims', 'num_layers', 'num_heads', 'feedforward_channels')
_SIZES = {
    name: dict(zip(_ARCH_KEYS, (dims, 12, dims // 64, 4 * dims), strict=True))
    for name, dims in dict(tiny=192, small=384, base=768).items()
}
_CLASS_TOKENS = ('cls_token', 'dist_token')
_RESIZES = ('bicubic', 'bilinear')
_OUT_TYPES = ('cls_token', 'featmap', 'avg_featmap', 'raw')


@MODELS.register_module()
class AnchorFormer(BaseModule):
    """DeiT with anchor attention.

    Arguments, outputs and parameter names are those of mmpretrain's
    ``VisionTransformer``, so that its heads and checkpoint tools fit; it
    needs mmengine and mmcv only. As in the authors' release, the class and
    distillation tokens take part in the attention like any other token.

    Args:
        arch: ``'tiny'``, ``'small'`` or ``'base'``, or a dict with
            ``embed_dims``, ``num_layers``, ``num_heads`` and
            ``feedforward_channels``.
        img_size: Height and width of the training images (or one number for
            both), px, at least ``patch_size``. Other sizes work: the position
            embedding is resized.
        patch_size: Side of a patch, px. Images are padded at the right and
            bottom to whole patches.
        in_channels: Channels of the images.
        attention: ``'learned'`` anchors (figure 3b), ``'query'``: anchors
            picked among the queries (figure 3a), ``'vanilla'`` attention, or
            another of :data:`anchorformer_mm.models.layers.ATTENTIONS`.
        num_anchors: Anchors m of every layer, or one number a layer.
        attn_cfg: Further arguments of the attention, such as
            ``logits``, ``tied``, ``share_anchors``, ``logit_std``, ``dwc_v``,
            ``qkv_bias``; see :mod:`anchorformer_mm.models.layers`.
        out_indices: Layers whose output is returned, ascending; negative ones
            count from the end. Layers after the last of these do not run and
            do not train.
        out_type: What is returned of a layer:

            - ``'cls_token'``: the class token, (B, D); with a distillation
              token the pair of both;
            - ``'featmap'``: the map of patches, (B, D, H, W);
            - ``'avg_featmap'``: its normalised average, (B, D);
            - ``'raw'``: all tokens, class tokens first, (B, n, D).
        with_cls_token: Whether there is a class token.
        with_dist_token: Whether there is a distillation token (DeiT).
        final_norm: Whether the last layer's output is normalised.
        frozen_stages: Number of first layers that are not trained, together
            with the embeddings; -1 or 0: all of the network trains. With all
            layers, so are the norms after them.
        drop_rate: Dropout after the embedding and in feed-forward networks.
        drop_path_rate: Of the last block; rises linearly from 0.
        with_cp: Recompute the blocks in the backward pass to save memory.
        interpolate_mode: How the position embedding is resized,
            ``'bicubic'`` or ``'bilinear'``.
        norm_cfg: Normalisation.
        init_cfg: Initialisation; by default linear layers are drawn from a
            truncated normal distribution with standard deviation 0.02.

    Raises:
        ValueError: An argument is not among the allowed values; or, in
            :meth:`forward`, images are smaller than a patch.

    Shape:
        - Input: (B, in_channels, H, W), H and W >= ``patch_size``.
        - Output: a tuple with one entry for each of ``out_indices``.

    Example:
        >>> model = AnchorFormer('tiny', out_type='featmap')
        >>> model(torch.rand(1, 3, 256, 192))[0].shape
        torch.Size([1, 192, 16, 12])
    """

    def __init__(
        self,
        arch: str | dict = 'tiny',
        *,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        attention: str = 'learned',
        num_anchors: int | Sequence[int] = 30,
        attn_cfg: dict | None = None,
        out_indices: int | Sequence[int] = -1,
        out_type: str = 'cls_token',
        with_cls_token: bool = True,
        with_dist_token: bool = False,
        final_norm: bool = True,
        frozen_stages: int = -1,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        interpolate_mode: str = 'bicubic',
        norm_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(
            init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02)
        )
        self.arch_settings = named_or_dict('arch', arch, _SIZES, _ARCH_KEYS)
        for key, value in self.arch_settings.items():
            check_positive(**{f'arch[{key!r}]': value})
        self.embed_dims = self.arch_settings['embed_dims']
        self.num_layers = self.arch_settings['num_layers']
        check_one_of(_OUT_TYPES, out_type=out_type)
        if out_type == 'cls_token' and not with_cls_token:
            raise ValueError(
                "out_type='cls_token' needs with_cls_token=True; choose "
                "'featmap', 'avg_featmap' or 'raw' without it"
            )
        check_within(-1, self.num_layers, frozen_stages=frozen_stages)
        check_positive(patch_size=patch_size, in_channels=in_channels)
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        check_one_of(_RESIZES, interpolate_mode=interpolate_mode)
        if not isinstance(attn_cfg or {}, Mapping):
            raise ValueError(f'attn_cfg must be a dict, got {attn_cfg!r}')
        size = one_for_each('img_size', img_size, 2)
        if min(size) < patch_size:
            raise ValueError(
                f'img_size must have no side below patch_size={patch_size}, '
                f'got {img_size!r}'
            )
        anchors = one_for_each('num_anchors', num_anchors, self.num_layers)
        self.patch_size = patch_size
        self.out_type = out_type
        self.out_indices = _ascending(out_indices, self.num_layers)
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        self.interpolate_mode = interpolate_mode
        norm_cfg = norm_cfg or dict(type='LN', eps=1e-6)

        self.patch_embed = PatchEmbed(
            in_channels=in_channels,
            embed_dims=self.embed_dims,
            kernel_size=patch_size,
            stride=patch_size,
            input_size=size,
        )
        self.patch_resolution = tuple(self.patch_embed.init_out_size)
        self.cls_token = self._embedding(1) if with_cls_token else None
        self.dist_token = self._embedding(1) if with_dist_token else None
        self.num_extra_tokens = with_cls_token + with_dist_token
        h, w = self.patch_resolution
        self.pos_embed = self._embedding(self.num_extra_tokens + h * w)
        self.drop_after_pos = nn.Dropout(drop_rate)

        rates = np.linspace(0, drop_path_rate, self.num_layers).tolist()
        heads = self.arch_settings['num_heads']
        hidden = self.arch_settings['feedforward_channels']
        attn_cfg = attn_cfg or {}
        self.layers = ModuleList(
            TransformerBlock(
                build_attention(
                    attention, self.embed_dims, heads, m, **attn_cfg
                ),
                mlp_ratio=hidden / self.embed_dims,
                drop_rate=drop_rate,
                drop_path_rate=rate,
                norm_cfg=norm_cfg,
            )
            for m, rate in zip(anchors, rates, strict=True)
        )
        # Named as in mmpretrain: ln1 after the last layer, ln2 after pooling.
        self.ln1 = nn.Identity()
        if final_norm:
            self.ln1 = build_norm_layer(norm_cfg, self.embed_dims)[1]
        if out_type == 'avg_featmap':
            self.ln2 = build_norm_layer(norm_cfg, self.embed_dims)[1]
        self._register_state_dict_hook(_save_grid)
        self._freeze()

    def _embedding(self, tokens: int) -> nn.Parameter:
        embedding = torch.empty(1, tokens, self.embed_dims)
        return nn.Parameter(nn.init.trunc_normal_(embedding, std=0.02))

    def forward(self, x: Tensor) -> tuple:
        height, width = x.shape[-2:]
        if height < self.patch_size or width < self.patch_size:
            raise ValueError(
                'images must be at least one patch high and wide '
                f'(patch_size={self.patch_size}), got {height} x {width} px'
            )
        x, hw = self.patch_embed(x)
        extra = [
            token.expand(x.shape[0], -1, -1)
            for token in (self.cls_token, self.dist_token)
            if token is not None
        ]
        x = torch.cat((*extra, x), dim=1) + self._positions(hw)
        x = self.drop_after_pos(x)
        outs = []
        for i, layer in enumerate(self.layers):
            x = run_block(layer, x, hw, with_cp=self.with_cp)
            if i == self.num_layers - 1:
                x = self.ln1(x)
            if i in self.out_indices:
                outs.append(self._format(x, hw))
            if i == self.out_indices[-1]:
                break
        return tuple(outs)

    def _positions(self, hw: tuple[int, int]) -> Tensor:
        """Position embedding for a map of size ``hw``, (1, n, D)."""
        if same_grid(self.patch_resolution, hw):
            return self.pos_embed
        extra, grid = self._split_extra(self.pos_embed)
        grid = resize_position_embedding(
            grid, self.patch_resolution, hw, mode=self.interpolate_mode
        )
        return torch.cat((extra, grid), dim=1)

    def _split_extra(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        n = self.num_extra_tokens
        return tokens[:, :n], tokens[:, n:]

    def _format(
        self, x: Tensor, hw: tuple[int, int]
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.out_type == 'raw':
            return x
        if self.out_type == 'cls_token':
            if self.dist_token is not None:
                return x[:, 0], x[:, 1]
            return x[:, 0]
        patches = self._split_extra(x)[1]
        if self.out_type == 'avg_featmap':
            return self.ln2(patches.mean(dim=1))
        return patches.transpose(1, 2).unflatten(2, tuple(hw))

    def train(self, mode: bool = True) -> 'AnchorFormer':
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 1:
            return []
        modules = [self.patch_embed, self.drop_after_pos]
        modules += self.layers[: self.frozen_stages]
        if self.frozen_stages == self.num_layers:
            modules.append(self.ln1)
            if self.out_type == 'avg_featmap':
                modules.append(self.ln2)
        return modules

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if self.frozen_stages > 0:
            for token in (self.cls_token, self.dist_token, self.pos_embed):
                if token is not None:
                    token.requires_grad_(False)
        # A weight that trains and gets no gradient stops distributed training.
        last = self.out_indices[-1]
        self.layers[last + 1 :].requires_grad_(False)
        if last < self.num_layers - 1:
            self.ln1.requires_grad_(False)
        self.train(self.training)

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """Depth of a parameter, for learning rates that decay by layer.

        Args:
            param_name: Name of the parameter in the whole model.
            prefix: Start of the names of this backbone's parameters.

        Returns:
            tuple[int, int]: The depth (0: embeddings, then the layers, then
            all that follows), and the number of depths.
        """
        num_depths = self.num_layers + 2
        name = param_name.removeprefix(prefix)
        if param_name.startswith(prefix):
            if name.startswith('layers.'):
                return int(name.split('.')[1]) + 1, num_depths
            if not name.startswith(('ln1.', 'ln2.')):
                return 0, num_depths
        return num_depths - 1, num_depths

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, *args
    ) -> None:
        """Bring a checkpoint's position embedding to this model's tokens."""
        name = f'{prefix}pos_embed'
        if name in state_dict:
            own = [n for n in _CLASS_TOKENS if getattr(self, n) is not None]
            positions = self.pos_embed.detach()
            state_dict[name] = fit_position_embedding(
                state_dict[name],
                [key for key in _CLASS_TOKENS if prefix + key in state_dict],
                {n: positions[:, i, None] for i, n in enumerate(own)},
                local_metadata.get('grid'),
                self.patch_resolution,
                mode=self.interpolate_mode,
            )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, *args
        )


def _save_grid(module, state_dict, prefix, local_metadata) -> None:
    """Keep the map's size beside the weights: 192 tokens tell no shape."""
    local_metadata['grid'] = list(module.patch_resolution)


def _ascending(
    out_indices: int | Sequence[int], num_layers: int
) -> tuple[int, ...]:
    """Layers as ascending numbers from 0."""
    given = (out_indices,) if type(out_indices) is int else out_indices
    if isinstance(given, Sequence) and all(type(i) is int for i in given):
        indices = tuple(i + num_layers if i < 0 else i for i in given)
        allowed = all(0 <= i < num_layers for i in indices)
        if indices and allowed and list(indices) == sorted(set(indices)):
            return indices
    raise ValueError(
        f'out_indices must be ascending layers in [-{num_layers}, '
        f'{num_layers - 1}], got {out_indices!r}'
    )
