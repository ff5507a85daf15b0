"""A ViT's weights as the start of an AnchorFormer."""

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anchorformer_mm.conversion.attention_weights import convert_attention
from anchorformer_mm.conversion.inventory import Inventory
from anchorformer_mm.conversion.vit_weights import (
    TOKENS,
    ViTWeights,
    sizes_of,
)
from anchorformer_mm.models.backbones import AnchorFormer
from anchorformer_mm.utils.errors import UsageError

_TOKEN_KINDS = dict(
    cls_token='class token and its position',
    dist_token='distillation token and its position',
)
# What is carried as it is, and what the model may keep of its own.
_PLAIN = (
    (re.compile(r'^patch_embed\.'), 'patch embedding'),
    (re.compile(r'(^|\.)ln[12]\.'), 'norms'),
    (re.compile(r'\.ffn\.'), 'MLPs'),
)
_OWN = (
    (re.compile(r'^(cls|dist)_token$'), 'class tokens'),
    (re.compile(r'^ln[12]\.'), 'norms'),
    (re.compile(r'\.attn\.anchors$'), 'anchors'),
)


@dataclass(frozen=True)
class WarmStart:
    """A start for a model.

    Args:
        state_dict: Names with the prefixes ``backbone.`` and, if the head was
            carried, ``head.``.
        inventory: What came from the source, and what did not.
    """

    state_dict: OrderedDict[str, Tensor]
    inventory: Inventory


def warm_start(
    source: ViTWeights,
    backbone: AnchorFormer,
    head: nn.Module | None = None,
    centroids: Sequence[Tensor] | None = None,
) -> WarmStart:
    """Load the weights of a ViT into an AnchorFormer, as far as they reach.

    Args:
        source: The ViT.
        backbone: Of whatever attention and class tokens, with the layers,
            widths and patches of the source. It is loaded in place; what it
            finds no weights for, it keeps.
        head: A classification head. It is loaded in place if all of its
            weights are there in its shapes, or not at all.
        centroids: For each layer the anchors of each head, shape (h, m, d).
            Without them learned anchors stay those of ``backbone``.

    Returns:
        WarmStart: It shares memory with ``backbone`` and ``head``.

    Raises:
        UsageError: Sizes differ, or the positions are on a grid that the
            checkpoint does not tell.
    """
    _check_sizes(source, backbone)
    inventory = Inventory()
    state = _embeddings(source, backbone, inventory)
    ours = backbone.state_dict()
    for name, value in source.backbone.items():
        kind = _kind_of(name, _PLAIN)
        if kind is not None and name in ours:
            state[name] = value
        if kind is not None:
            action = 'carried' if name in ours else 'dropped'
            inventory.add(action, kind, value)
    residuals = []
    for i, layer in enumerate(backbone.layers):
        weights = {
            name.removeprefix('attn.'): value
            for name, value in source.layer(i).items()
        }
        weights, residual = convert_attention(
            layer.attn,
            weights,
            inventory,
            None if centroids is None else centroids[i],
        )
        residuals += [] if residual is None else [residual]
        state |= {f'layers.{i}.attn.{n}': v for n, v in weights.items()}
    if centroids is not None:
        note = 'centroids of queries by k-means'
        if residuals:
            note += (
                ', in bases common to all heads, relative residual up to '
                f'{max(residuals):.1e}'
            )
        inventory.add('made', 'anchors', note=note)
    _load(backbone, state, source, inventory)
    loaded = backbone.state_dict(prefix='backbone.')
    if _load_head(head, source, inventory):
        head.state_dict(destination=loaded, prefix='head.')
    inventory.add_if_any('dropped', 'other weights', *source.other.values())
    return WarmStart(loaded, inventory)


def vanilla_model(source: ViTWeights, backbone_cfg: dict) -> AnchorFormer:
    """The source itself, with the class tokens and size of a target.

    Args:
        source: A ViT.
        backbone_cfg: Arguments of the target, an :class:`AnchorFormer`.

    Returns:
        AnchorFormer: With vanilla attention, in evaluation mode.
    """
    cfg = {name: v for name, v in backbone_cfg.items() if name != 'type'}
    cfg |= dict(
        attention='vanilla',
        attn_cfg=dict(qkv_bias=source.qkv_bias, dwc_v=source.dwc_v),
        init_cfg=None,
    )
    model = AnchorFormer(**cfg)
    warm_start(source, model)
    return model.eval()


def _check_sizes(source: ViTWeights, backbone: AnchorFormer) -> None:
    theirs = sizes_of(source.backbone)
    ours = sizes_of(backbone.state_dict())
    differ = [name for name in ours if ours[name] != theirs[name]]
    if differ:
        listings = [
            ', '.join(f'{name}={sizes[name]}' for name in differ)
            for sizes in (theirs, ours)
        ]
        raise UsageError(
            f'the checkpoint has {listings[0]}, but the backbone of the '
            f'config has {listings[1]}: they must be equal'
        )


def _embeddings(
    source: ViTWeights, backbone: AnchorFormer, inventory: Inventory
) -> dict[str, Tensor]:
    """Class tokens that both have, and the position embedding to them.

    A distillation token that only the target has becomes a copy of the class
    token. Grids are left to the backbone, which resizes them as it loads.
    """
    positions = source.backbone['pos_embed']
    extra = source.tokens
    slots = dict(zip(extra, positions.split(1, dim=1), strict=False))
    grid = positions[:, len(extra) :]
    tokens = {name: source.backbone[name] for name in extra}
    for name in extra:
        kept = getattr(backbone, name) is not None
        inventory.add(
            'carried' if kept else 'dropped',
            _TOKEN_KINDS[name],
            tokens[name],
            slots[name],
            note='' if kept else 'the model has none',
        )
    if backbone.dist_token is not None and extra == ('cls_token',):
        tokens['dist_token'] = tokens['cls_token']
        slots['dist_token'] = slots['cls_token']
        inventory.add(
            'made',
            _TOKEN_KINDS['dist_token'],
            tokens['dist_token'],
            slots['dist_token'],
            note='copies of those of the class token',
        )
    inventory.add('carried', 'positions of the patches', grid)
    state = {
        name: tokens[name]
        for name in TOKENS
        if name in tokens and getattr(backbone, name) is not None
    }
    state['pos_embed'] = torch.cat((*(slots[n] for n in state), grid), dim=1)
    return state


def _load(
    backbone: AnchorFormer,
    state: dict[str, Tensor],
    source: ViTWeights,
    inventory: Inventory,
) -> None:
    """Load ``state``, and record what the backbone keeps of its own."""
    state = OrderedDict(state)
    if source.grid is not None:
        state._metadata = {'': dict(grid=source.grid)}
    try:
        keys = backbone.load_state_dict(state, strict=False)
    except ValueError as error:
        # The backbone's own words about the grid of positions.
        raise UsageError(str(error)) from None
    ours = backbone.state_dict()
    unknown = [n for n in keys.missing_keys if _kind_of(n, _OWN) is None]
    if unknown or keys.unexpected_keys:
        raise AssertionError(
            f'the conversion forgot {unknown} and made {keys.unexpected_keys}'
        )
    for name in keys.missing_keys:
        inventory.add(
            'made',
            _kind_of(name, _OWN),
            ours[name],
            note='as the model initialises them',
        )


def _load_head(
    head: nn.Module | None, source: ViTWeights, inventory: Inventory
) -> bool:
    """Load the head if all of it is there; whether it was."""
    if head is None:
        inventory.add_if_any('dropped', 'head', *source.head.values())
        return False
    ours = head.state_dict()
    state, copied = dict(source.head), {}
    for name in ours:
        twin = name.replace('layers.head_dist.', 'layers.head.')
        if name not in state and twin in state:
            copied[name] = state[twin]
    state |= copied
    absent = [n for n in ours if n not in state]
    differ = [
        n for n in ours if n in state and state[n].shape != ours[n].shape
    ]
    if absent or differ:
        note = f'it has no {", ".join(absent)}'
        if differ:
            shapes = (tuple(s[differ[0]].shape) for s in (state, ours))
            note = '{} is {}, {} in the model'.format(differ[0], *shapes)
        inventory.add_if_any(
            'dropped', 'head', *source.head.values(), note=note
        )
        return False
    head.load_state_dict({name: state[name] for name in ours})
    for name, value in source.head.items():
        action = 'carried' if name in ours else 'dropped'
        inventory.add(action, 'head', value)
    inventory.add_if_any(
        'made',
        'head of the distillation token',
        *copied.values(),
        note='a copy of the head',
    )
    return True


def _kind_of(name: str, kinds: Sequence[tuple[re.Pattern, str]]) -> str | None:
    for pattern, kind in kinds:
        if pattern.search(name):
            return kind
    return None
