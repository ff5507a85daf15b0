"""ViT and DeiT checkpoints as the start of an AnchorFormer.

An AnchorFormer with learned anchors has no query projection. Its anchors
stand where the queries stood: they are centroids of the queries that the ViT
computes for some images. All else is carried as far as it fits.
"""

import argparse
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor, nn

from anchorformer_mm.conversion.anchors import share_anchors
from anchorformer_mm.models.backbones import AnchorFormer
from anchorformer_mm.models.layers import (
    AnchorAttention,
    BaseAnchorAttention,
    BaseAttention,
    QueryAnchorAttention,
)
from anchorformer_mm.utils import checkpoint
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.text import listing

_TOKENS = dict(
    cls_token='class token and its position',
    dist_token='distillation token and its position',
)
# timm's names, which the DeiT release shares, to those of mmpretrain's
# VisionTransformer; mmpretrain's own pass unchanged.
_FROM_TIMM = {
    r'^blocks\.': 'layers.',
    r'^patch_embed\.proj\.': 'patch_embed.projection.',
    r'^norm\.': 'ln1.',
    r'^fc_norm\.': 'ln2.',
    r'\.norm([12])\.': r'.ln\1.',
    r'\.mlp\.fc1\.': '.ffn.layers.0.0.',
    r'\.mlp\.fc2\.': '.ffn.layers.1.',
}
_HEAD_FROM_TIMM = {
    r'^(head|head_dist)\.(weight|bias)$': r'layers.\1.\2',
    r'^pre_logits\.fc\.': 'layers.pre_logits.',
}
# LayerScale, and the layer before it.
_LAYER_SCALE = {
    r'(?<=\d\.)(ls1\.gamma|attn\.gamma1\.weight)$': 'attn.proj.',
    r'(?<=\d\.)(ls2\.gamma|ffn\.gamma2\.weight)$': 'ffn.layers.1.',
}
_KINDS = {
    r'^patch_embed\.': 'patch embedding',
    r'(^|\.)ln[12]\.': 'norms',
    r'\.ffn\.': 'MLPs',
    r'_token$': 'class tokens',
    r'\.attn\.(gather_)?anchors$': 'anchors',
    r'\.attn\.logit_scale$': 'factors of the logits',
}


def read_checkpoint(path: str | Path) -> Mapping:
    """Read a checkpoint file onto the CPU, and run no code from it.

    Args:
        path: Written by ``torch.save``, or a ``.safetensors`` file, for which
            the package of that name must be installed.

    Raises:
        UsageError: The file is not there, is no checkpoint, holds more than
            weights and plain data, or its package is missing.
    """
    path = Path(path)
    if path.suffix != '.safetensors' or not path.is_file():
        if hasattr(torch.serialization, 'add_safe_globals'):
            # The DeiT release keeps its command line beside the weights.
            torch.serialization.add_safe_globals([argparse.Namespace])
        return checkpoint.read_checkpoint(path)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UsageError(
            f'{path} needs safetensors, which is not installed: pip install '
            'safetensors'
        ) from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UsageError(f'{path} is no safetensors file: {error}') from None


@dataclass(frozen=True)
class ViTWeights:
    """Weights of a ViT.

    Args:
        backbone: By the names of mmpretrain's ``VisionTransformer``.
        head: By the names of its heads, such as ``layers.head.weight``; may
            be empty.
        other: What belongs to neither, e.g. a neck.
        grid: Height and width of the map of position embeddings, if the
            checkpoint tells.
        num_heads: Heads of its layers, if the checkpoint tells.
    """

    backbone: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    other: Mapping[str, Tensor]
    grid: Sequence[int] | None = None
    num_heads: int | None = None

    @property
    def attn_cfg(self) -> dict[str, bool]:
        """The ``attn_cfg`` of vanilla attention that has these weights."""
        return dict(
            qkv_bias='layers.0.attn.qkv.bias' in self.backbone,
            dwc_v='layers.0.attn.dwc_v.weight' in self.backbone,
        )

    @property
    def tokens(self) -> tuple[str, ...]:
        """The class tokens that there are, in their order."""
        return tuple(name for name in _TOKENS if name in self.backbone)


def vit_weights(checkpoint: Mapping) -> ViTWeights:
    """Find the ViT in a checkpoint.

    Args:
        checkpoint: mmengine's or timm's (``state_dict`` holds the weights),
            the DeiT release's (``model`` holds them), or the weights
            themselves. The names may be mmpretrain's or timm's, with the
            prefix ``backbone.`` or without.

    Factors of LayerScale are multiplied into the layers before them.

    Raises:
        UsageError: There is no plain ViT in it: something is missing, of
            another shape, not finite, or has no place in an AnchorFormer.
    """
    tensors = tensors_of(checkpoint)
    metadata = tensors._metadata
    prefixed = any(name.startswith('backbone.') for name in tensors)
    parts = dict(backbone={}, head={}, other={})
    for name, value in tensors.items():
        part, name = place(name, prefixed)
        parts[part][name] = value
    bad = [n for n, v in tensors.items() if not v.isfinite().all()]
    if bad:
        raise UsageError(
            f'the checkpoint has weights not finite: {listing(bad, 3)}'
        )
    _fold_layer_scale(parts['backbone'])
    own = metadata.get('backbone' if prefixed else '', {})
    # mmengine keeps the text of the config beside the weights.
    meta = checkpoint.get('meta')
    text = str(meta.get('cfg')) if isinstance(meta, Mapping) else ''
    heads = set(re.findall(r'\bnum_heads=(\d+)', text))
    weights = ViTWeights(
        **parts,
        grid=own.get('grid'),
        num_heads=int(heads.pop()) if len(heads) == 1 else None,
    )
    _require_plain_vit(weights, list(tensors or checkpoint))
    return weights


def _fold_layer_scale(weights: dict[str, Tensor]) -> None:
    for name in list(weights):
        for pattern, target in _LAYER_SCALE.items():
            layer = re.sub(pattern, target, name)
            if layer == name or f'{layer}weight' not in weights:
                continue
            factors = weights.pop(name)
            weights[f'{layer}weight'] = (
                factors[:, None] * weights[f'{layer}weight']
            )
            weights[f'{layer}bias'] = factors * weights[f'{layer}bias']


def tensors_of(checkpoint: Mapping) -> OrderedDict[str, Tensor]:
    """The tensors of a checkpoint by name, and their ``_metadata``.

    They are under ``state_dict``, ``model`` or neither. The prefix that
    data-parallel training leaves, ``module.``, is taken off.
    """
    state = checkpoint.get('state_dict', checkpoint.get('model', checkpoint))
    tensors = OrderedDict()
    tensors._metadata = getattr(state, '_metadata', {})
    for name, value in state.items() if isinstance(state, Mapping) else ():
        if isinstance(value, Tensor):
            tensors[name.removeprefix('module.')] = value
    return tensors


def place(name: str, prefixed: bool = False) -> tuple[str, str]:
    """Part of the model that a name belongs to, and its name in there."""
    part, _, rest = name.partition('.')
    if prefixed and part not in ('backbone', 'head'):
        return 'other', name
    rules = {} if prefixed else _HEAD_FROM_TIMM
    for pattern, replacement in rules.items():
        if re.search(pattern, name):
            return 'head', re.sub(pattern, replacement, name)
    if part == 'head':
        return 'head', rest
    if rest == 'mask_token' or name == 'mask_token':
        # Of the pretraining of DINOv2 and its like.
        return 'other', name
    name = name.removeprefix('backbone.')
    for pattern, replacement in _FROM_TIMM.items():
        name = re.sub(pattern, replacement, name)
    return 'backbone', name


def sizes_of(weights: Mapping[str, Tensor]) -> dict[str, object]:
    """Sizes that a backbone's weights tell.

    The number of heads is not among them: no weight's shape depends on it.

    Args:
        weights: By mmpretrain's names; of any attention.
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


def _require_plain_vit(source: ViTWeights, keys: Sequence[str]) -> None:
    """Refuse weights that are not those of a whole, plain ViT."""
    weights = source.backbone
    try:
        sizes = sizes_of(weights)
        size, channels = sizes.pop('patch_size')[0], sizes.pop('in_channels')
        positions = weights['pos_embed'][:, :1]
    except LookupError:
        raise UsageError(
            'the checkpoint is of no ViT that mmpretrain, timm or DeiT '
            f'writes. Its first keys: {listing(keys[:5]) or "none"}'
        ) from None
    with torch.device('meta'):
        model = AnchorFormer(
            dict(sizes, num_heads=1),
            img_size=size,
            patch_size=size,
            in_channels=channels,
            attention='vanilla',
            attn_cfg=source.attn_cfg,
            with_cls_token='cls_token' in weights,
            with_dist_token='dist_token' in weights,
            final_norm='ln1.weight' in weights,
            out_type='avg_featmap' if 'ln2.weight' in weights else 'raw',
        )
    state = {name: value.to('meta') for name, value in weights.items()}
    # Any number of positions will do: they are resized later.
    positions = positions.to('meta')
    state['pos_embed'] = positions.expand(-1, model.pos_embed.shape[1], -1)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = ' '.join(str(error).split()[6:])
        raise UsageError(
            f'the checkpoint is of no plain ViT; {shorten(reason, 500)}'
        ) from None


class Inventory:
    """Counts of tensors and parameters by what became of them, and by kind.

    Carried and dropped tensors are counted as they are in the source, made
    ones as they are in the target. A slice of a tensor counts as a tensor.
    """

    ACTIONS = ('carried', 'made', 'dropped')

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], dict] = {}

    def add(
        self, action: str, kind: str, *tensors: Tensor | None, note: str = ''
    ) -> None:
        """Count tensors, together with those of the same action and kind.

        Args:
            action: One of ``ACTIONS``.
            kind: E.g. ``'norms'``.
            *tensors: Of any shape; None counts as absent. Without any, the
                note alone is kept, if there is such a row.
            note: Why or how; each wording is kept once.
        """
        tensors = [t for t in tensors if t is not None]
        key = action, kind
        if not tensors and key not in self._rows:
            return
        new = dict(action=action, kind=kind, tensors=0, parameters=0, note='')
        row = self._rows.setdefault(key, new)
        row['tensors'] += len(tensors)
        row['parameters'] += sum(t.numel() for t in tensors)
        if note and note not in row['note'].split('; '):
            row['note'] = f'{row["note"]}; {note}'.removeprefix('; ')

    def rows(self) -> list[dict]:
        """The rows in the order of ``ACTIONS``, as plain data."""
        rows = map(dict, self._rows.values())
        return sorted(rows, key=lambda r: self.ACTIONS.index(r['action']))

    def __str__(self) -> str:
        lines = [f'{"tensors":>53} {"parameters":>11}']
        lines += [
            f'{row["action"]:8}{row["kind"]:36}  {row["tensors"]:>7} '
            f'{row["parameters"]:>11,}  {row["note"]}'.rstrip()
            for row in self.rows()
        ]
        return '\n'.join(lines)


def warm_start(
    source: ViTWeights,
    backbone: AnchorFormer,
    head: nn.Module | None = None,
    centroids: Sequence[Tensor] | None = None,
    rest: Mapping[str, Tensor] | None = None,
) -> tuple[OrderedDict[str, Tensor], Inventory]:
    """Load the weights of a ViT into an AnchorFormer, as far as they fit.

    Args:
        source: The ViT.
        backbone: Of any attention and class tokens, with the layers, widths
            and patches of the source. It is loaded in place; it keeps what
            the source has no weights for.
        head: A classification head. It is loaded in place if the source has
            all of its weights in its shapes, or not at all.
        centroids: For each layer the anchors of each head, as of
            :func:`convert_attention`. Without them learned anchors stay those
            of ``backbone``.
        rest: Weights of the whole model, of which those that are neither of
            the backbone nor of the head, e.g. of a segmentor's neck, are
            carried where name and shape agree.

    Returns:
        tuple: The state dict, which shares memory with ``backbone`` and
        ``head``; names have the prefixes ``backbone.`` and ``head.``. And
        what came from the source, and what did not.

    Raises:
        UsageError: Sizes differ, or the positions are on a grid that the
            checkpoint does not tell.
    """
    ours = backbone.state_dict()
    sizes = sizes_of(source.backbone), sizes_of(ours)
    if source.num_heads is not None:
        sizes[0]['num_heads'] = source.num_heads
        sizes[1]['num_heads'] = backbone.layers[0].attn.num_heads
    differ = [name for name in sizes[0] if sizes[0][name] != sizes[1][name]]
    if differ:
        theirs, wanted = (
            ', '.join(f'{name}={of[name]}' for name in differ) for of in sizes
        )
        raise UsageError(
            f'the checkpoint has {theirs}, but the backbone of the config '
            f'has {wanted}: they must be equal'
        )
    inventory = Inventory()
    state = _embeddings(source, ours, inventory)
    for name, value in source.backbone.items():
        if '.attn.' in name or name == 'pos_embed' or name in _TOKENS:
            continue
        action = 'carried' if name in ours else 'dropped'
        inventory.add(action, _kind(name), value)
        if name in ours:
            state[name] = value
    residuals = []
    for i, layer in enumerate(backbone.layers):
        prefix = f'layers.{i}.attn.'
        weights = {
            name.removeprefix(prefix): value
            for name, value in source.backbone.items()
            if name.startswith(prefix)
        }
        anchors = None if centroids is None else centroids[i]
        weights, residual = convert_attention(
            layer.attn, weights, inventory, anchors
        )
        residuals += [] if residual is None else [residual]
        state |= {prefix + name: value for name, value in weights.items()}
    if centroids is not None:
        note = 'centroids of queries by k-means'
        if residuals:
            note += (
                ', in bases common to all heads, relative residual up to '
                f'{max(residuals):.1e}'
            )
        inventory.add('made', 'anchors', note=note)
    try:
        # The backbone itself resizes positions, and leaves out those of
        # class tokens that it does not have.
        keys = backbone.load_state_dict(state, strict=False)
    except ValueError as error:
        raise UsageError(str(error)) from None
    for name in keys.missing_keys:
        note = 'as the model initialises them'
        inventory.add('made', _kind(name), ours[name], note=note)
    loaded = backbone.state_dict(prefix='backbone.')
    if load_head(head, source.head, inventory):
        head.state_dict(destination=loaded, prefix='head.')
    for name, value in source.other.items():
        fits = name in (rest or {}) and rest[name].shape == value.shape
        if fits:
            loaded[name] = value
        inventory.add('carried' if fits else 'dropped', 'other weights', value)
    return loaded, inventory


def _kind(name: str) -> str:
    return next(k for pattern, k in _KINDS.items() if re.search(pattern, name))


def _embeddings(
    source: ViTWeights, ours: Mapping[str, Tensor], inventory: Inventory
) -> OrderedDict[str, Tensor]:
    """The source's class tokens and positions, as a state dict to load."""
    positions = source.backbone['pos_embed']
    state = OrderedDict(pos_embed=positions)
    if source.grid is not None:
        state._metadata = {'': dict(grid=source.grid)}
    for i, name in enumerate(source.tokens):
        state[name] = source.backbone[name]
        inventory.add(
            'carried' if name in ours else 'dropped',
            _TOKENS[name],
            state[name],
            positions[:, i],
            note='' if name in ours else 'the model has none',
        )
    if 'dist_token' in ours and source.tokens == ('cls_token',):
        state['dist_token'] = state['cls_token']
        state['pos_embed'] = torch.cat((positions[:, :1], positions), dim=1)
        inventory.add(
            'made',
            _TOKENS['dist_token'],
            state['dist_token'],
            positions[:, 0],
            note='copies of those of the class token',
        )
    grid = positions[:, len(source.tokens) :]
    inventory.add('carried', 'positions of the patches', grid)
    return state


def load_head(
    head: nn.Module | None, source: Mapping[str, Tensor], inventory: Inventory
) -> bool:
    """Load the head if all of it is there, and tell if it was."""
    ours = {} if head is None else head.state_dict()
    twins = {n: n.replace('head_dist.', 'head.') for n in ours}
    copied = {
        name: source[twin]
        for name, twin in twins.items()
        if name not in source and twin in source
    }
    state = {**source, **copied}
    note = ''
    for name, value in ours.items():
        if name not in state:
            note = f'it has no {name}'
        elif state[name].shape != value.shape:
            shapes = tuple(state[name].shape), tuple(value.shape)
            note = '{} is {}, {} in the model'.format(name, *shapes)
        if note:
            break
    if head is None or note:
        inventory.add('dropped', 'head', *source.values(), note=note)
        return False
    head.load_state_dict({name: state[name] for name in ours})
    for name, value in source.items():
        action = 'carried' if name in ours else 'dropped'
        inventory.add(action, 'head', value)
    kind = 'head of the distillation token'
    note = 'a copy of the head'
    inventory.add('made', kind, *copied.values(), note=note)
    return True


def convert_attention(
    attn: BaseAttention,
    source: Mapping[str, Tensor],
    inventory: Inventory,
    centroids: Tensor | None = None,
) -> tuple[dict[str, Tensor], float | None]:
    """Convert the weights of a ViT's attention to those of another kind.

    Args:
        attn: The layer that they are for; it is not changed.
        source: ``qkv.weight`` (3 D, D), ``proj.weight`` (D, D), ``proj.bias``
            (D,) and, if there are such, ``qkv.bias`` (3 D,) and ``dwc_v``.
        inventory: Takes the record.
        centroids: Anchors for each head, shape (h, m, d), where the layer
            learns its anchors; of one that is not tied (h, 2 m, d), those for
            gathering first. Without them it keeps its own.

    Returns:
        tuple: Weights by the layer's own names, and the relative residual of
        shared anchors (None where none were fitted).
    """
    weight, bias = source['qkv.weight'], source.get('qkv.bias')
    projection = source['proj.weight'], source['proj.bias']
    state = dict(zip(('proj.weight', 'proj.bias'), projection, strict=True))
    add, residual = inventory.add, None

    def carry_bias(name: str, kind: str, *parts: Tensor | None) -> None:
        ours = getattr(attn, name).bias
        if ours is not None and parts[0] is not None:
            state[f'{name}.bias'] = torch.cat(parts)
            add('carried', kind, *parts)
        elif ours is not None:
            state[f'{name}.bias'] = torch.zeros_like(ours)
            add('made', 'biases', ours, note='zero')

    if not isinstance(attn, BaseAnchorAttention):
        if not hasattr(attn, 'qkv'):
            raise UsageError(
                f'{type(attn).__name__} has no place for the projections of '
                "a ViT's attention"
            )
        if bias is not None and attn.qkv.bias is None:
            raise UsageError(
                'the checkpoint has query biases, without which '
                f'{type(attn).__name__} computes something else: set '
                'attn_cfg=dict(qkv_bias=True) in the backbone'
            )
        state['qkv.weight'] = weight
        kind = 'query, key and value projections'
        add('carried', kind, weight)
        carry_bias('qkv', kind, bias)
        add('carried', 'output projections', *projection)
        return state | _convolution(attn, source, inventory), None

    w_q, w_k, w_v = weight.double().chunk(3)
    b_q, b_k, b_v = (None,) * 3 if bias is None else bias.double().chunk(3)
    if isinstance(attn, QueryAnchorAttention):
        state['q.weight'] = w_q
        add('carried', 'query projections', w_q)
        if attn.q.bias is None:
            # It adds the same to the similarities of a key to all anchors.
            note = 'cancel in the softmax over anchors'
            add('dropped', 'query biases', b_q, note=note)
        carry_bias('q', 'query projections', b_q)
    else:
        note = '' if centroids is None else 'their centroids are the anchors'
        add('dropped', 'query projections', w_q, b_q, note=note)
    add('carried', 'key and value projections', w_k, w_v)
    if isinstance(attn, AnchorAttention) and centroids is not None:
        if attn.share_anchors:
            by_head = w_k.unflatten(0, (len(centroids), -1))
            anchors, bases, residual = share_anchors(
                centroids, by_head, centre=attn.tied
            )
            centroids = anchors[None]
            w_k = (bases @ by_head).flatten(0, 1)
            if b_k is not None:
                b_k = b_k.unflatten(0, (len(bases), -1, 1))
                b_k = (bases @ b_k).flatten()
        names = ('anchors',) if attn.tied else ('gather_anchors', 'anchors')
        state |= zip(names, centroids.chunk(len(names), 1), strict=True)
        add('made', 'anchors', centroids)
    state['kv.weight'] = torch.cat((w_k, w_v))
    add('carried', 'output projections', *projection)
    if b_v is None or attn.kv.bias is not None:
        carry_bias('kv', 'key and value biases', b_k, b_v)
    elif 'dwc_v.weight' in source:
        raise UsageError(
            'the checkpoint has value biases and convolves its values: the '
            'biases do not fold into the output projection then; set '
            'attn_cfg=dict(qkv_bias=True) in the backbone'
        )
    else:
        # Values are averaged with weights that sum to 1, so their bias passes
        # through unchanged to behind the output projection.
        state['proj.bias'] = projection[1].double() + (
            projection[0].double() @ b_v
        )
        note = 'folded into the biases of the output projections'
        add('carried', 'value biases', b_v, note=note)
        note = "cancel in the source's softmax over keys"
        add('dropped', 'key biases', b_k, note=note)
    return state | _convolution(attn, source, inventory), residual


def _convolution(
    attn: BaseAttention, source: Mapping[str, Tensor], inventory: Inventory
) -> dict[str, Tensor]:
    """The convolution of the values: the source's, or one without effect."""
    kind = 'convolutions of the values'
    theirs = {n: v for n, v in source.items() if n.startswith('dwc_v.')}
    if attn.dwc_v is None or theirs:
        action = 'dropped' if attn.dwc_v is None else 'carried'
        inventory.add(action, kind, *theirs.values())
        return theirs if action == 'carried' else {}
    ours = attn.dwc_v.state_dict(prefix='dwc_v.')
    zeros = {name: torch.zeros_like(value) for name, value in ours.items()}
    note = 'zero, so that they start without effect'
    inventory.add('made', kind, *zeros.values(), note=note)
    return zeros


def vanilla_model(source: ViTWeights, backbone_cfg: Mapping) -> AnchorFormer:
    """Build the source itself, with the class tokens and size of a target.

    Args:
        source: A ViT.
        backbone_cfg: Arguments of the target, an :class:`AnchorFormer`.

    Returns:
        AnchorFormer: With vanilla attention, in evaluation mode.
    """
    cfg = {name: v for name, v in backbone_cfg.items() if name != 'type'}
    cfg |= dict(attention='vanilla', attn_cfg=source.attn_cfg, init_cfg=None)
    model = AnchorFormer(**cfg)
    warm_start(source, model)
    return model.eval()
