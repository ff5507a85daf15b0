"""LeViT with anchor attention (AnchorFormer, arXiv 2505.16463, figure 5b)."""

from collections.abc import Sequence
from functools import partial
from operator import lt

from mmengine.model import BaseModule, ModuleList, Sequential
from mmengine.utils import is_seq_of
from mmpretrain.models.backbones.levit import (
    HybridBackbone,
    LeViT,
    Residual,
    fuse_parameters,
)
from torch import Tensor

from anchorformer_mm.models.argument_checks import (
    check_above_zero,
    check_positive,
    check_rates,
    one_for_each,
)
from anchorformer_mm.models.backbones.anchor_levit_layers import (
    MapAnchorAttention,
    MapMLP,
)
from anchorformer_mm.registry import MODELS

STEM_STRIDE = 16
ARCH_KEYS = ('embed_dims', 'key_dims', 'num_heads', 'depths')


@MODELS.register_module()
class AnchorLeViT(BaseModule):
    """LeViT whose attention goes through learned anchors.

    Modules have LeViT's names, so that stem, MLPs, output projections and the
    keys and values of the downsampling can start from a LeViT checkpoint.
    Unlike LeViT it takes images of any size.

    Args:
        arch: ``'128s'``, ``'128'``, ``'192'``, ``'256'``, ``'384'`` or a dict
            of ``embed_dims``, ``num_heads``, ``depths`` and ``key_dims``,
            each a list with one int for each stage, or one int for all.
        img_size: Side, or height and width, of the training images; sizes
            the position biases.
        patch_size: Stride of the stem; LeViT's is 16.
        attn_ratio: Channels of a value over those of a key; 4 where the map
            is halved, as in LeViT.
        mlp_ratio: Hidden channels of an MLP over those of its input.
        num_anchors: Anchors m of every attention, or of those of each stage.
        share_anchors: One set of anchors for all heads of an attention, as in
            the authors' release of AnchorFormer, or one for each head.
        anchor_std: Standard deviation of the anchors at initialisation.
        drop_path_rate: Probability to skip a residual branch for an image.
        act_cfg: Activation of attention and MLP.
        out_indices: Stage or stages to return; negative from the last.
        deploy: Whether to be built as deployed, for weights of a model on
            which :meth:`switch_to_deploy` was called.
        init_cfg: Initialisation; by default torch's.

    Raises:
        ValueError: An argument is not among the allowed values.

    Shape:
        - Input: (B, 3, H, W), any H and W.
        - Output: tuple of (B, embed_dims[i], ceil(H / s_i), ceil(W / s_i))
          with s = 16, 32, 64, ..., for i in ``out_indices``.

    Example:
        >>> net = AnchorLeViT('128s', out_indices=(0, 1, 2)).eval()
        >>> for c in net(torch.rand(1, 3, 224, 320)):
        ...     print(tuple(c.shape))
        (1, 128, 14, 20)
        (1, 256, 7, 10)
        (1, 384, 4, 5)
    """

    def __init__(
        self,
        arch: str | dict = '256',
        img_size: int | Sequence[int] = 224,
        *,
        patch_size: int = STEM_STRIDE,
        attn_ratio: int = 2,
        mlp_ratio: int = 2,
        num_anchors: int | Sequence[int] = 30,
        share_anchors: bool = True,
        anchor_std: float = 0.02,
        drop_path_rate: float = 0.0,
        act_cfg: dict | None = None,
        out_indices: int | Sequence[int] = -1,
        deploy: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.arch = _checked_arch(arch)
        num_stages = len(self.arch['depths'])
        if patch_size != STEM_STRIDE:
            raise ValueError(
                f'patch_size must be {STEM_STRIDE}, the stride of the stem, '
                f'got {patch_size!r}'
            )
        check_positive(attn_ratio=attn_ratio, mlp_ratio=mlp_ratio)
        check_above_zero(anchor_std=anchor_std)
        check_rates(drop_path_rate=drop_path_rate)
        img_size = one_for_each('img_size', img_size, 2)
        num_anchors = one_for_each('num_anchors', num_anchors, num_stages)
        act_cfg = act_cfg or dict(type='HSwish')
        self.out_indices = _checked_indices(out_indices, num_stages)

        embed_dims = self.arch['embed_dims']
        self.patch_embed = HybridBackbone(embed_dims[0])
        self.stages = ModuleList()
        map_size = _ceil_div(img_size, STEM_STRIDE)
        for i, (dims, key_dims, num_heads, depth) in enumerate(
            zip(*(self.arch[key] for key in ARCH_KEYS), strict=True)
        ):
            attention = partial(
                MapAnchorAttention,
                out_dims=dims,
                key_dims=key_dims,
                num_anchors=num_anchors[i],
                share_anchors=share_anchors,
                anchor_std=anchor_std,
                act_cfg=act_cfg,
            )
            residual = partial(Residual, drop_path_rate=drop_path_rate)
            mlp = partial(MapMLP, dims, mlp_ratio, act_cfg=act_cfg)
            blocks = []
            if i > 0:
                halving = attention(
                    embed_dims[i - 1],
                    num_heads=embed_dims[i - 1] // key_dims,
                    map_size=map_size,
                    attn_ratio=4,
                    stride=2,
                )
                blocks += [halving, residual(mlp())]
                map_size = _ceil_div(map_size, 2)
            for _ in range(depth):
                mixer = attention(
                    dims,
                    num_heads=num_heads,
                    map_size=map_size,
                    attn_ratio=attn_ratio,
                )
                blocks += [residual(mixer), residual(mlp())]
            self.stages.append(Sequential(*blocks))

        self.deploy = False
        if deploy:
            self.switch_to_deploy()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(x.permute(0, 3, 1, 2).contiguous())
        return tuple(outs)

    def switch_to_deploy(self) -> None:
        """Fuse norms and fold attention; evaluation is unchanged.

        Every norm becomes part of the layer before it, and every attention a
        :class:`.FusedMapAnchorAttention`. There is no way back to training.
        """
        if not self.deploy:
            fuse_parameters(self)
            self.deploy = True


def _checked_arch(arch: str | dict) -> dict[str, Sequence[int]]:
    if isinstance(arch, str) and arch.lower() in LeViT.arch_zoo:
        return LeViT.arch_zoo[arch.lower()]
    if not isinstance(arch, dict):
        raise ValueError(
            f'arch must be one of {tuple(LeViT.arch_zoo)} or a dict with the '
            f'keys {ARCH_KEYS}, got {arch!r}'
        )
    missing = [key for key in ARCH_KEYS if key not in arch]
    unknown = [key for key in arch if key not in ARCH_KEYS]
    if missing or unknown:
        raise ValueError(
            f'arch must have exactly the keys {ARCH_KEYS}: missing '
            f'{missing}, unknown {unknown}, got {arch!r}'
        )
    embed_dims = arch['embed_dims']
    is_list = isinstance(embed_dims, Sequence) and embed_dims
    num_stages = len(embed_dims) if is_list else 1
    arch = {
        key: one_for_each(f'arch[{key!r}]', arch[key], num_stages)
        for key in ARCH_KEYS
    }
    # The stem starts with an eighth of the first width; a stage is entered
    # with as many heads as its key_dims fit in the width before it.
    floors = [max((8, *arch['key_dims'][1:2])), *arch['key_dims'][2:], 1]
    if any(map(lt, arch['embed_dims'], floors)):
        raise ValueError(
            "arch['embed_dims'] must start with 8 or more and be at least "
            "arch['key_dims'] of the stage that follows, got "
            f'embed_dims={arch["embed_dims"]}, key_dims={arch["key_dims"]}'
        )
    return arch


def _checked_indices(
    out_indices: int | Sequence[int], num_stages: int
) -> tuple[int, ...]:
    indices = (out_indices,) if isinstance(out_indices, int) else out_indices
    if (
        not is_seq_of(indices, int)
        or not indices
        or not all(-num_stages <= index < num_stages for index in indices)
    ):
        raise ValueError(
            'out_indices must be an int or a sequence of ints in '
            f'[{-num_stages}, {num_stages - 1}], got {out_indices!r}'
        )
    return tuple(index % num_stages for index in indices)


def _ceil_div(size: Sequence[int], divisor: int) -> tuple[int, ...]:
    return tuple(-(-side // divisor) for side in size)
