"""LeViT with anchor attention (AnchorFormer, arXiv 2505.16463, figure 5b).

The release of AnchorFormer has no AnchorLeViT. Two questions are answered
here: what becomes of LeViT's position bias, and how an attention without
queries halves a map; see :class:`MapAnchorAttention`.

As it is deployed, without the statistics that norms need in training, keys
and values are linear in the tokens X (n x C), so two products can be taken in
another order, exactly. For anchors U (m x k) and, of a head, W_K (C x k) and
W_V (C x v):

- logits X (W_K U^T): n m C multiply-accumulates in place of n k (C + m);
- values (G^T X) W_V, where A is the softmax of the logits over anchors and G
  is A with each column divided by its sum: m C (n + v) in place of
  n v (C + m).

An activation follows each head's result, so that the output projection stays
as it is, unlike in :mod:`anchorformer_mm.models.layers.anchor_attention`.
"""

import warnings
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from operator import lt

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer
from mmengine.model import BaseModule, ModuleList, Sequential
from mmengine.utils import is_seq_of
from mmpretrain.models.backbones.levit import (
    MLP,
    HybridBackbone,
    LeViT,
    LinearBatchNorm,
    Residual,
    fuse_parameters,
)
from torch import Tensor, nn

from anchorformer_mm.models.argument_checks import (
    check_above_zero,
    check_one_of,
    check_positive,
    check_rates,
    named_or_dict,
    one_for_each,
)
from anchorformer_mm.models.layers.anchor_attention import (
    LOGITS,
    anchor_aggregate,
    anchor_weights,
    fold_keys,
    gathered_values,
    standardized,
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
        anchor_std: Standard deviation of the anchors at initialisation, and
            of the logits, as a norm makes the keys.
        logits: ``'dot'`` or ``'standardized'`` products of keys and anchors,
            see :class:`.BaseAnchorAttention`; position biases come after.
        logit_scale: What the learned factor of the latter starts from.
        tied: Whether the same anchors gather from the tokens and are read
            out. If not, the first half of ``anchors`` gathers.
        drop_path_rate: Probability to skip a residual branch for an image.
        act_cfg: Activation of attention and MLP.
        out_indices: Stage or stages to return; negative from the last. Those
            after the last one do not run and do not train.
        deploy: Whether to be built as deployed, for weights of a model on
            which :meth:`switch_to_deploy` was called.
        init_cfg: Initialisation; by default torch's.

    Shape:
        - Input: (B, 3, H, W), any H and W.
        - Output: tuple of (B, embed_dims[i], ceil(H / s_i), ceil(W / s_i))
          with s = 16, 32, 64, ..., for i in ``out_indices``.
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
        anchor_std: float = 1.0,
        logits: str = 'dot',
        logit_scale: float = 1.0,
        tied: bool = True,
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
        check_above_zero(anchor_std=anchor_std, logit_scale=logit_scale)
        check_one_of(LOGITS, logits=logits)
        check_rates(drop_path_rate=drop_path_rate)
        img_size = one_for_each('img_size', img_size, 2)
        num_anchors = one_for_each('num_anchors', num_anchors, num_stages)
        act_cfg = act_cfg or dict(type='HSwish')
        given = (out_indices,) if isinstance(out_indices, int) else out_indices
        stages = range(-num_stages, num_stages)
        if not is_seq_of(given, int) or not given or set(given) - set(stages):
            raise ValueError(
                'out_indices must be an int or a sequence of ints in '
                f'[{-num_stages}, {num_stages - 1}], got {out_indices!r}'
            )
        self.out_indices = tuple(index % num_stages for index in given)

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
                logit_scale=logit_scale if logits == 'standardized' else None,
                tied=tied,
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
                sizes = dict(map_size=map_size, attn_ratio=attn_ratio)
                mixer = attention(dims, num_heads=num_heads, **sizes)
                blocks += [residual(mixer), residual(mlp())]
            self.stages.append(Sequential(*blocks))

        # A weight that trains and gets no gradient stops distributed training.
        self.stages[max(self.out_indices) + 1 :].requires_grad_(False)
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
            if i == max(self.out_indices):
                break
        return tuple(outs)

    def switch_to_deploy(self) -> None:
        """Fuse norms into the layers before them, and fold attention.

        Evaluation is unchanged; there is no way back to training.
        """
        if not self.deploy:
            fuse_parameters(self)
            self.deploy = True


class MapMLP(MLP):
    """mmpretrain's MLP of tokens on a map, (B, H, W, C) to (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1, 2)).reshape(x.shape)


class MapAnchors(BaseModule):
    """Position bias of anchors on a map, and how checkpoints fit it.

    Layers define the tables ``attention_biases_h`` (h, m, H) and
    ``attention_biases_w`` (h, m, W), and maybe ``anchors``.
    """

    def position_bias(self, height: int, width: int) -> Tensor:
        """Bias of the logits by position, shape (h, height * width, m)."""
        rows = _resized(self.attention_biases_h, height).unsqueeze(-1)
        columns = _resized(self.attention_biases_w, width).unsqueeze(-2)
        return (rows + columns).flatten(2).transpose(1, 2)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Fit tables of another length; refuse other heads and anchors.

        mmengine's loader would log the latter, and go on with random weights.
        """
        for name in ('anchors', 'attention_biases_h', 'attention_biases_w'):
            own, key = getattr(self, name, None), prefix + name
            if own is None or key not in state_dict:
                continue
            loaded = state_dict[key]
            # All but the length of a table has to agree.
            fixed = slice(None) if name == 'anchors' else slice(-1)
            if loaded.ndim != 3 or loaded.shape[fixed] != own.shape[fixed]:
                raise ValueError(
                    f'the checkpoint has {key} of shape '
                    f'{tuple(loaded.shape)}, the model one of shape '
                    f'{tuple(own.shape)}: arch, num_anchors and '
                    'share_anchors must be those of the checkpoint'
                )
            state_dict[key] = _resized(loaded, own.shape[-1])
        super()._load_from_state_dict(state_dict, prefix, *args)


class MapAnchorAttention(MapAnchors):
    """Anchor attention on a map; each anchor learns where it looks.

    LeViT biases its logits by the offset between query and key. An anchor has
    no place from which an offset could be measured, so its bias is one of
    absolute position, the sum of a table over rows and one over columns. On a
    map of another size the tables are interpolated linearly.

    With ``stride`` > 1 the anchors still gather from every token, and only
    the tokens on the strided grid read them out: rows of the same Markov step
    A (Delta^-1 (A^T V)), so that halving the map needs no queries either.

    Args:
        in_dims: Channels C of the input.
        out_dims: Channels of the output.
        key_dims: Channels d of a key and of an anchor.
        map_size: Height and width of the position tables.
        stride: Rows and columns from one reading token to the next.
        logit_scale: First value of the factor of standardized logits, one
            for each head; ``None`` is ``'dot'``.
        act_cfg: Activation before the output projection.

    Shape:
        - Input: (B, H, W, C), any H and W.
        - Output: (B, ceil(H / stride), ceil(W / stride), out_dims).
    """

    def __init__(
        self,
        in_dims: int,
        out_dims: int,
        *,
        key_dims: int,
        num_heads: int,
        map_size: tuple[int, int],
        attn_ratio: int,
        num_anchors: int,
        share_anchors: bool,
        anchor_std: float,
        act_cfg: dict,
        logit_scale: float | None = None,
        tied: bool = True,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.split = (key_dims, attn_ratio * key_dims)
        self.scale = key_dims**-0.5
        self.stride = stride
        self.kv = LinearBatchNorm(in_dims, num_heads * sum(self.split))
        self.tied = tied
        self.logit_scale = None
        if logit_scale is not None:
            self.logit_scale = nn.Parameter(
                torch.full((num_heads, 1, 1), float(logit_scale))
            )
        sets = 1 if share_anchors else num_heads
        rows = num_anchors if tied else 2 * num_anchors
        self.anchors = nn.Parameter(torch.empty(sets, rows, key_dims))
        bound = 2 * anchor_std
        nn.init.trunc_normal_(self.anchors, std=anchor_std, a=-bound, b=bound)
        self.attention_biases_h, self.attention_biases_w = (
            nn.Parameter(torch.zeros(num_heads, rows, length))
            for length in map_size
        )
        self.proj = nn.Sequential(
            build_activation_layer(act_cfg),
            LinearBatchNorm(num_heads * self.split[1], out_dims),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        kv = self.kv(x.flatten(1, 2)).reshape(
            batch, height * width, self.num_heads, sum(self.split)
        )
        k, v = kv.transpose(1, 2).split(self.split, dim=-1)
        logits = self.logits_of(k, height, width)
        tokens = torch.arange(height * width, device=x.device)
        tokens = tokens.view(height, width)[:: self.stride, :: self.stride]
        index = tokens.flatten() if self.stride > 1 else None
        out = anchor_aggregate(logits, v, tied=self.tied, read_index=index)
        out = self.proj(out.transpose(1, 2).flatten(2))
        return out.reshape(batch, *tokens.shape, out.shape[-1])

    def weights_of(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, read weights A and gather weights of a map (B, H, W, C).

        Each has shape (B, h, H W, m). A sums to one over the anchors, gather
        weights over the tokens.
        """
        height, width = x.shape[1:3]
        k = self.kv(x.flatten(1, 2)).unflatten(2, (self.num_heads, -1))
        k = k.transpose(1, 2)[..., : self.split[0]]
        logits = self.logits_of(k, height, width)
        read, gather = anchor_weights(logits.transpose(-2, -1), tied=self.tied)
        logits = logits[..., -read.shape[-2] :]
        return logits, read.transpose(-2, -1), gather.transpose(-2, -1)

    @torch.no_grad()
    def fuse(self) -> 'FusedMapAnchorAttention':
        """Return the same function for evaluation; this layer stays."""
        # Fusing changes what it fuses.
        parts = deepcopy(nn.ModuleDict(dict(kv=self.kv, proj=self.proj)))
        fuse_parameters(parts)
        return FusedMapAnchorAttention(
            anchors=self.anchors * self.scale,
            kv=parts['kv'],
            num_heads=self.num_heads,
            tables=(self.attention_biases_h, self.attention_biases_w),
            proj=parts['proj'],
            stride=self.stride,
            logit_scale=self.logit_scale,
            tied=self.tied,
        )

    def logits_of(self, k: Tensor, height: int, width: int) -> Tensor:
        """Biased similarities (B, h, n, m) of keys (B, h, n, d) of a map."""
        logits = (self.anchors * self.scale) @ k.transpose(-2, -1)
        if self.logit_scale is not None:
            logits = standardized(logits, self.logit_scale)
        return logits.transpose(-2, -1) + self.position_bias(height, width)


class FusedMapAnchorAttention(MapAnchors):
    """Anchor attention on a map as it is deployed.

    :meth:`.MapAnchorAttention.fuse` makes it. It holds W_K U^T in place of
    keys and anchors (1 or h, m, k) where that is cheaper
    (:func:`folding_keys_pays`), and chooses the order of the values by the
    number of tokens (:func:`gathering_first_pays`). The table of rows takes up
    the keys' bias. No gradients of weights.
    """

    def __init__(
        self,
        *,
        anchors: Tensor,
        kv: nn.Linear,
        num_heads: int,
        tables: tuple[Tensor, Tensor],
        proj: nn.Module,
        stride: int,
        logit_scale: Tensor | None = None,
        tied: bool = True,
    ) -> None:
        super().__init__()
        rows, key_dims = anchors.shape[1:]
        self.tied = tied
        self.num_anchors = rows if tied else rows // 2
        # Kept as numbers: shapes are none in a trace.
        self.in_dims = kv.in_features
        self.value_dims = kv.out_features // num_heads - key_dims
        self.num_heads = num_heads
        self.stride = stride
        heads = (num_heads, -1)
        split = (key_dims, self.value_dims)
        key, value = kv.weight.unflatten(0, heads).split(split, dim=1)
        key_bias, value_bias = kv.bias.unflatten(0, heads).split(split, dim=1)
        key = key.flatten(0, 1)

        logit, logit_bias = fold_keys(
            anchors.unsqueeze(0), key, key_bias.flatten()
        )
        if logit_scale is not None:  # takes off what is alike for all tokens
            logit_bias = torch.zeros_like(logit_bias)
        folds = folding_keys_pays(self.in_dims, key_dims, rows)
        for name, weight in (
            ('logit_weight', logit[0] if folds else None),
            ('key_weight', None if folds else key),
            ('anchors', None if folds else anchors),
            ('value_weight', value.flatten(0, 1)),
            ('value_bias', value_bias.flatten()),
            ('attention_biases_h', tables[0] + logit_bias.view(*heads, 1)),
            ('attention_biases_w', tables[1]),
            ('logit_scale', logit_scale),
        ):
            if weight is not None:
                weight = nn.Parameter(weight.detach().clone())
            self.register_parameter(name, weight)
        self.proj = proj
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        x = x.flatten(1, 2)
        logits = self.logits_of(x, height, width).transpose(-2, -1)
        read, gather = anchor_weights(logits, tied=self.tied)
        gather = gather.to(x.dtype)
        n, m = height * width, self.num_anchors
        weight, bias = self.value_weight, self.value_bias
        if gathering_first_pays(n, self.in_dims, self.value_dims, m):
            z = gathered_values(gather, x, weight, bias, self.num_heads)
            z = z.unflatten(1, (-1, m)).transpose(0, 1)
        else:
            v = F.linear(x, weight, bias).unflatten(2, (self.num_heads, -1))
            z = gather @ v.transpose(1, 2)  # (B, h, m, v)
        read = read.reshape(*read.shape[:-1], height, width)
        read = read[..., :: self.stride, :: self.stride]
        size = read.shape[-2:]
        read = read.flatten(3).to(x.dtype)
        out = read.transpose(-2, -1) @ z  # (B, h, n', v)
        out = self.proj(out.transpose(1, 2).flatten(2))
        return out.reshape(batch, *size, out.shape[-1])

    def logits_of(self, x: Tensor, height: int, width: int) -> Tensor:
        """Biased similarities (B, h, n, m) of tokens (B, n, C) of a map."""
        folds = self.logit_weight is not None
        weight = self.logit_weight if folds else self.key_weight
        logits = weight.expand(x.shape[0], -1, -1).bmm(x.transpose(1, 2))
        logits = logits.unflatten(1, (self.num_heads, -1))
        if not folds:
            logits = self.anchors @ logits
        if self.logit_scale is not None:
            logits = standardized(logits, self.logit_scale)
        return logits.transpose(-2, -1) + self.position_bias(height, width)


def folding_keys_pays(in_dims: int, key_dims: int, m: int) -> bool:
    """Tell whether logits cost less without keys, for many tokens."""
    return m * in_dims < key_dims * (in_dims + m)


def gathering_first_pays(
    n: object, in_dims: int, value_dims: int, m: int
) -> bool:
    """Tell whether it costs less to project gathered tokens than all n.

    Where n is a symbol, the answer is that for many tokens.
    """
    if isinstance(n, Tensor):
        # Traced. Both orders hold for all sizes: that of the trace may choose.
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', torch.jit.TracerWarning)
            n = int(n)
    if type(n) is not int:
        return m * in_dims < value_dims * (in_dims + m)
    return m * in_dims * (n + value_dims) < n * value_dims * (in_dims + m)


def _resized(table: Tensor, length: int) -> Tensor:
    """(h, m, L) -> (h, m, length), by linear interpolation."""
    # In a trace or compilation for any size, a length has no value yet.
    if type(length) is int and table.shape[-1] == length:
        return table
    return F.interpolate(table, length, mode='linear', align_corners=False)


def _checked_arch(arch: str | dict) -> dict[str, Sequence[int]]:
    name = arch.lower() if isinstance(arch, str) else arch
    arch = named_or_dict('arch', name, LeViT.arch_zoo, ARCH_KEYS)
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


def _ceil_div(size: Sequence[int], divisor: int) -> tuple[int, ...]:
    return tuple(-(-side // divisor) for side in size)
