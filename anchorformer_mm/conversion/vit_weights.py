"""Weights of a ViT or DeiT under mmpretrain's names, whoever wrote them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.text import (
    listing,
)

TOKENS = ('cls_token', 'dist_token')

# timm's names, which the DeiT release shares, to those of mmpretrain's
# VisionTransformer; mmpretrain's own pass unchanged.
_FROM_TIMM = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r'^blocks\.', 'layers.'),
        (r'^patch_embed\.proj\.', 'patch_embed.projection.'),
        (r'^norm\.', 'ln1.'),
        (r'^fc_norm\.', 'ln2.'),
        (r'\.norm([12])\.', r'.ln\1.'),
        (r'\.mlp\.fc1\.', '.ffn.layers.0.0.'),
        (r'\.mlp\.fc2\.', '.ffn.layers.1.'),
    )
)
_HEAD_FROM_TIMM = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r'^(head|head_dist)\.(weight|bias)$', r'layers.\1.\2'),
        (r'^pre_logits\.fc\.', 'layers.pre_logits.'),
    )
)


@dataclass(frozen=True)
class ViTWeights:
    """What a checkpoint holds of a ViT.

    Args:
        backbone: Weights by the names of mmpretrain's ``VisionTransformer``.
        head: Weights by the names of its heads, such as
            ``layers.head.weight``; may be empty.
        other: What belongs to neither, e.g. a neck.
        grid: Height and width of the map of position embeddings, if the
            checkpoint tells.
    """

    backbone: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    other: Mapping[str, Tensor]
    grid: Sequence[int] | None = None

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have a bias."""
        return 'layers.0.attn.qkv.bias' in self.backbone

    @property
    def dwc_v(self) -> bool:
        """Whether values are convolved, as our vanilla attention can do."""
        return 'layers.0.attn.dwc_v.weight' in self.backbone

    @property
    def tokens(self) -> tuple[str, ...]:
        """The class tokens that there are, in their order."""
        return tuple(name for name in TOKENS if name in self.backbone)

    def layer(self, index: int) -> dict[str, Tensor]:
        """Weights of one layer, by their names within it."""
        prefix = f'layers.{index}.'
        return {
            name.removeprefix(prefix): value
            for name, value in self.backbone.items()
            if name.startswith(prefix)
        }


def vit_weights(checkpoint: Mapping) -> ViTWeights:
    """Find the ViT in a checkpoint.

    Args:
        checkpoint: mmengine's or timm's (``state_dict`` holds the weights),
            the DeiT release's (``model`` holds them), or the weights
            themselves. The names may be mmpretrain's or timm's, with the
            prefix ``backbone.`` or without.

    Raises:
        UsageError: There is no plain ViT in it: something is missing, of
            another shape, or has no place in an AnchorFormer.
    """
    state = checkpoint.get('state_dict', checkpoint.get('model', checkpoint))
    metadata = getattr(state, '_metadata', {})
    is_mapping = isinstance(state, Mapping)
    tensors = {
        name: value
        for name, value in (state.items() if is_mapping else ())
        if isinstance(value, Tensor)
    }
    parts = dict(backbone={}, head={}, other={})
    prefixed = any(name.startswith('backbone.') for name in tensors)
    for name, value in tensors.items():
        part, name = _place(name, prefixed)
        parts[part][name] = value
    first = list(state if is_mapping else checkpoint)[:5]
    _check(parts['backbone'], first)
    own = metadata.get('backbone' if prefixed else '', {})
    return ViTWeights(**parts, grid=own.get('grid'))


def _place(name: str, prefixed: bool) -> tuple[str, str]:
    """Part of the model that a name belongs to, and its name in there."""
    if prefixed and not name.startswith(('backbone.', 'head.')):
        return 'other', name
    for pattern, replacement in () if prefixed else _HEAD_FROM_TIMM:
        if pattern.search(name):
            return 'head', pattern.sub(replacement, name)
    if name.startswith('head.'):
        return 'head', name.removeprefix('head.')
    name = name.removeprefix('backbone.')
    for pattern, replacement in _FROM_TIMM:
        name = pattern.sub(replacement, name)
    return 'backbone', name


def sizes_of(weights: Mapping[str, Tensor]) -> dict[str, object]:
    """Sizes that a backbone's weights tell.

    The number of heads is not among them: no weight's shape depends on it.

    Args:
        weights: By mmpretrain's names; of whatever attention.
    """
    patch = weights['patch_embed.projection.weight'].shape
    layers = {n.split('.')[1] for n in weights if n.startswith('layers.')}
    return dict(
        num_layers=len(layers),
        embed_dims=patch[0],
        feedforward_channels=len(weights['layers.0.ffn.layers.0.0.weight']),
        patch_size=tuple(patch[2:]),
        in_channels=patch[1],
    )


def _check(weights: Mapping[str, Tensor], first: Sequence[str]) -> None:
    """Refuse what is not a whole, plain ViT.

    Raises:
        UsageError: As said; it names the first keys concerned.
    """
    signs = (
        'pos_embed',
        'patch_embed.projection.weight',
        'layers.0.attn.qkv.weight',
        'layers.0.ffn.layers.0.0.weight',
    )
    absent = [name for name in signs if name not in weights]
    if absent:
        raise UsageError(
            'the checkpoint is of no ViT that mmpretrain, timm or DeiT '
            f'writes: it has no {listing(absent)}. Its first keys: '
            f'{listing(first) or "none"}'
        )
    required, optional = _shapes(weights)
    missing = sorted(set(required) - set(weights))
    if missing:
        raise UsageError(f'the checkpoint lacks {listing(missing)}')
    shapes = required | optional
    foreign = [name for name in weights if name not in shapes]
    if foreign:
        raise UsageError(
            'the checkpoint is of another kind of ViT; an AnchorFormer has '
            f'no place for its {listing(foreign)}'
        )
    for name, value in weights.items():
        if value.shape != torch.Size(shapes[name]):
            raise UsageError(
                f'{name} of the checkpoint should have shape '
                f'{tuple(shapes[name])}, got {tuple(value.shape)}'
            )


def _shapes(weights: Mapping[str, Tensor]) -> tuple[dict, dict]:
    """Shapes of the weights that a ViT must have, and may have."""
    sizes = sizes_of(weights)
    d, f = sizes['embed_dims'], sizes['feedforward_channels']
    tokens = weights['pos_embed'].shape[1:2]
    required = {
        'pos_embed': (1, *tokens, d),
        'patch_embed.projection.weight': (
            d,
            sizes['in_channels'],
            *sizes['patch_size'],
        ),
        'patch_embed.projection.bias': (d,),
    }
    optional = dict.fromkeys(TOKENS, (1, 1, d))
    for norm in ('ln1', 'ln2'):
        optional |= {f'{norm}.weight': (d,), f'{norm}.bias': (d,)}
    linear = {
        'attn.proj': (d, d),
        'ffn.layers.0.0': (f, d),
        'ffn.layers.1': (d, f),
    }
    has_bias = 'layers.0.attn.qkv.bias' in weights
    for i in range(sizes['num_layers']):
        layer = f'layers.{i}.'
        for norm in ('ln1', 'ln2'):
            required[f'{layer}{norm}.weight'] = (d,)
            required[f'{layer}{norm}.bias'] = (d,)
        required[f'{layer}attn.qkv.weight'] = (3 * d, d)
        optional[f'{layer}attn.dwc_v.weight'] = (d, 1, 3, 3)
        optional[f'{layer}attn.dwc_v.bias'] = (d,)
        if has_bias:
            required[f'{layer}attn.qkv.bias'] = (3 * d,)
        for name, shape in linear.items():
            required[f'{layer}{name}.weight'] = shape
            required[f'{layer}{name}.bias'] = shape[:1]
    return required, optional
