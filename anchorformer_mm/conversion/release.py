"""Weights of the authors' releases and of timm's LCNet, under our names.

Names and shapes are those of AnchorFormer's ``AnchorDeiT.py`` and
``AnchorViT.py``, ClusTR's ``ClusTR.py`` and timm's ``lcnet_*``. A backbone is
taken as a whole or not at all, and is the same function then: what its weights
do not tell, such as the heads of ClusTR, is the config's.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anchorformer_mm.conversion import vit
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.text import listing


@dataclass(frozen=True)
class Source:
    """A model that others wrote: how its weights are told and named."""

    name: str
    sign: str  # pattern of a name that its weights have
    backbone: str  # our class
    eps: list[float]  # of its norms; weights do not tell
    # Patterns and replacements, in turn, to names that ``vit.place`` knows.
    rules: tuple[tuple[str, str | Callable], ...]


_ANCHORS = (
    (r'\.x_to_emb\.', '.kv.'),
    (r'\.dist_anchor_B\.weight$', '.anchors'),
    (r'\.to_out\.0\.', '.proj.'),
)
SOURCES = (
    Source(
        "AnchorFormer's AnchorDeiT",
        r'^blocks\.0\.attn\.dist_anchor_B\.',
        'AnchorFormer',
        [1e-6],
        _ANCHORS,
    ),
    Source(
        "AnchorFormer's AnchorViT",
        r'^transformer\.layers\.0\.0\.fn\.dist_anchor_B\.',
        'AnchorFormer',
        [1e-5],
        (
            *_ANCHORS,
            (r'^to_patch_embedding\.1\.', 'patch_embed.proj.'),
            (r'^pos_embedding$', 'pos_embed'),
            (r'^transformer\.layers\.', 'blocks.'),
            (r'\.0\.norm\.', '.norm1.'),
            (r'\.0\.fn\.', '.attn.'),
            (r'\.1\.norm\.', '.norm2.'),
            (r'\.1\.fn\.net\.0\.', '.mlp.fc1.'),
            (r'\.1\.fn\.net\.3\.', '.mlp.fc2.'),
            (r'^mlp_head\.0\.', 'norm.'),
            (r'^mlp_head\.1\.', 'head.'),
        ),
    ),
    Source(
        'ClusTR',
        r'^block1\.0\.attn\.weight_layer\.',
        'ClusTR',
        [1e-6, 1e-5],
        (
            (r'^patch_embed(\d)\.proj\.', r'patch_embed\1.projection.'),
            (r'^block(\d)\.', r'blocks\1.'),
            (r'^([a-z_]+)(\d)\.', lambda m: f'stages.{int(m[2]) - 1}.{m[1]}.'),
            (r'\.weight_layer\.', '.importance.'),
            (r'\.kv([12])\.', lambda m: f'.kv.{int(m[1]) - 1}.'),
            (r'\.mlp\.(dwconv\.dw)?', '.ffn.'),
            (r'^head\.', 'head.fc.'),
        ),
    ),
    Source(
        "timm's LCNet",
        r'^conv_stem\.weight$',
        'LCNet',
        [1e-5],
        (
            # What follows the stages belongs to the classifier.
            (r'^(conv_head|classifier)\.', r'head.\1.'),
            (r'^conv_stem\.', 'stem.0.conv.'),
            (r'^bn1\.', 'stem.0.bn.'),
            # The first blocks run at strides 2 and 4, in our stem.
            (r'^blocks\.0\.0\.', 'stem.1.'),
            (r'^blocks\.1\.(\d)\.', lambda m: f'stem.{int(m[1]) + 2}.'),
            (r'^blocks\.2\.', 'stages.0.'),
            # Those of stride 16 are two stages of timm's.
            (r'^blocks\.3\.', 'stages.1.'),
            (r'^blocks\.4\.(\d)\.', lambda m: f'stages.1.{int(m[1]) + 2}.'),
            (r'^blocks\.5\.', 'stages.2.'),
            (r'\.conv_dw\.', '.depthwise_conv.conv.'),
            (r'\.bn1\.', '.depthwise_conv.bn.'),
            (r'\.conv_pw\.', '.pointwise_conv.conv.'),
            (r'\.bn2\.', '.pointwise_conv.bn.'),
            (r'\.se\.conv_reduce\.', '.se.1.'),
            (r'\.se\.conv_expand\.', '.se.3.'),
        ),
    ),
)


def convert_release(
    checkpoint: Mapping, backbone: nn.Module, head: nn.Module | None = None
) -> tuple[OrderedDict[str, Tensor], vit.Inventory, str]:
    """Load the weights of a model in ``SOURCES`` into ours.

    Args:
        checkpoint: Weights by their names, or under ``model`` or
            ``state_dict``.
        backbone: Loaded in place, as a whole; positions are resized.
        head: Of a classifier; loaded in place as a whole, or not at all.

    Returns:
        tuple: The state dict of ``backbone`` and ``head``, with these as
        prefixes; what was carried and dropped; whose weights they are.

    Raises:
        UsageError: They are of another kind of model, or a weight is missing,
            of another shape, or has no place in ours.
    """
    tensors = vit.tensors_of(checkpoint)
    names = '\n'.join(tensors)
    found = [s for s in SOURCES if re.search(s.sign, names, re.MULTILINE)]
    if not found:
        raise UsageError(
            f'the checkpoint is of none of {listing(s.name for s in SOURCES)}.'
            f' Its first keys: {listing(tensors) or "none"}. A ViT or DeiT is '
            'read by deit_to_anchorformer.py'
        )
    source, kind = found[0], type(backbone).__name__
    if kind != source.backbone:
        raise UsageError(
            f'the checkpoint is of {source.name}, but model.backbone of the '
            f'config is {kind}: it must be {source.backbone}'
        )
    eps = sorted({m.eps for m in backbone.modules() if hasattr(m, 'eps')})
    if eps != source.eps:
        raise UsageError(
            f'the norms of {source.name} have eps in {source.eps}, those of '
            f'the config in {eps}: set norm_cfg of model.backbone'
        )
    parts, origin = dict(backbone={}, head={}), {}
    for theirs, value in tensors.items():
        name = theirs
        for pattern, replacement in source.rules:
            name = re.sub(pattern, replacement, name)
        part, name = vit.place(name)
        parts[part][name], origin[name] = value, theirs
    state, ours = parts['backbone'], backbone.state_dict()
    _reshape(state, origin, ours)
    _require_all(state, origin, ours)
    try:
        backbone.load_state_dict(state, strict=False)
    except ValueError as error:
        raise UsageError(str(error)) from None
    inventory = vit.Inventory()
    inventory.add('carried', 'backbone', *state.values())
    loaded = backbone.state_dict(prefix='backbone.')
    if vit.load_head(head, parts['head'], inventory):
        head.state_dict(destination=loaded, prefix='head.')
    return loaded, inventory, source.name


def _reshape(state: dict, origin: dict, ours: Mapping[str, Tensor]) -> None:
    """Bring projections, anchors and patches into the form of our layers."""
    for name, value in list(state.items()):
        q, qkv = (name.replace('.kv.', f'.{x}.') for x in ('q', 'qkv'))
        wanted = ours[name].shape if name in ours else value.shape
        if q != name and q in state:
            state[qkv] = torch.cat((state.pop(q), state.pop(name)))
            origin[qkv] = f'{origin[q]} and {origin[name]}'
        elif name.endswith('.anchors'):
            # One set serves all heads, also where each has its own.
            state[name] = value.expand(*wanted[:-2], *value.shape)
        elif len(wanted) == 4 and value.shape[1:] == (wanted[1:].numel(),):
            # A patch is its pixels, row by row, with all channels of each.
            value = value.unflatten(1, (*wanted[2:], wanted[1]))
            state[name] = value.permute(0, 3, 1, 2)


def _require_all(state: dict, origin: dict, ours: Mapping) -> None:
    """Refuse weights that are not just those of the backbone."""
    problems = [
        f'{origin[name]} of the checkpoint gives {tuple(state[name].shape)}, '
        f'but {name} of the config is {tuple(value.shape)}'
        for name, value in ours.items()
        # Positions are resized.
        if name != 'pos_embed' and value.shape != state.get(name, value).shape
    ][:1]
    # Some files are without the counters of batch norms.
    lacking = [n for n in ours if n not in state and 'num_batches' not in n]
    foreign = [origin[name] for name in state if name not in ours]
    if foreign:
        problems.append(f'the config has no place for {listing(foreign, 3)}')
    if lacking:
        problems.append(f'the checkpoint has no {listing(lacking, 3)}')
    if problems:
        raise UsageError('; '.join(problems))
