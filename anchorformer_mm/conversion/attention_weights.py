"""From a ViT's attention layer to each kind of ours."""

from collections.abc import Mapping

import torch
from torch import Tensor

from anchorformer_mm.conversion.inventory import Inventory
from anchorformer_mm.conversion.shared_anchors import share_anchors
from anchorformer_mm.models.layers import (
    AnchorAttention,
    BaseAnchorAttention,
    BaseAttention,
    QueryAnchorAttention,
    SelfAttention,
)
from anchorformer_mm.utils.errors import UsageError


def convert_attention(
    attn: BaseAttention,
    source: Mapping[str, Tensor],
    inventory: Inventory,
    centroids: Tensor | None = None,
) -> tuple[dict[str, Tensor], float | None]:
    """Weights for one attention layer from those of a ViT.

    Args:
        attn: The layer that they are for; it is not changed.
        source: ``qkv.weight`` (3 D, D), ``proj.weight`` (D, D), ``proj.bias``
            (D,) and, if there are such, ``qkv.bias`` (3 D,) and ``dwc_v``.
        inventory: Takes the record.
        centroids: Anchors for each head, shape (h, m, d), where the layer
            learns its anchors. Without them it keeps its own.

    Returns:
        tuple: Weights by the layer's own names, and the relative residual of
        shared anchors (None where none were fitted).

    Raises:
        UsageError: The layer has no biases, and the source has query biases,
            which vanilla attention cannot do without, or value biases that
            its convolution sees.
    """
    if isinstance(attn, SelfAttention):
        state, residual = _vanilla(attn, source, inventory), None
    else:
        state, residual = _anchor(attn, source, inventory, centroids)
    state |= _convolution(attn, source, inventory)
    return state, residual


def _anchor(
    attn: BaseAnchorAttention,
    source: Mapping[str, Tensor],
    inventory: Inventory,
    centroids: Tensor | None,
) -> tuple[dict[str, Tensor], float | None]:
    w_q, w_k, w_v = source['qkv.weight'].double().chunk(3)
    biases = (None, None, None)
    if 'qkv.bias' in source:
        biases = source['qkv.bias'].double().chunk(3)
    state = {}
    if isinstance(attn, QueryAnchorAttention):
        _queries(attn, w_q, biases[0], state, inventory)
    else:
        note = '' if centroids is None else 'their centroids are the anchors'
        dropped = [t for t in (w_q, biases[0]) if t is not None]
        inventory.add('dropped', 'query projections', *dropped, note=note)
    inventory.add('carried', 'key and value projections', w_k, w_v)
    b_k, residual = biases[1], None
    if isinstance(attn, AnchorAttention) and centroids is not None:
        state['anchors'] = centroids
        if attn.share_anchors:
            state['anchors'], w_k, b_k, residual = _share(w_k, b_k, centroids)
        inventory.add('made', 'anchors', state['anchors'])
    state['kv.weight'] = torch.cat((w_k, w_v))
    _biases(attn, source, b_k, biases[2], state, inventory)
    return state, residual


def _convolution(
    attn: BaseAttention, source: Mapping[str, Tensor], inventory: Inventory
) -> dict[str, Tensor]:
    """The convolution of the values: the source's, or none to begin with."""
    kind = 'convolutions of the values'
    theirs = [source[n] for n in source if n.startswith('dwc_v.')]
    if attn.dwc_v is None:
        inventory.add_if_any('dropped', kind, *theirs)
        return {}
    ours = attn.dwc_v.state_dict(prefix='dwc_v.')
    if theirs:
        inventory.add('carried', kind, *theirs)
        return {name: source[name] for name in ours}
    ours = {name: torch.zeros_like(value) for name, value in ours.items()}
    note = 'zero, so that they start without effect'
    inventory.add('made', kind, *ours.values(), note=note)
    return ours


def _share(
    w_k: Tensor, b_k: Tensor | None, centroids: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, float]:
    """Common anchors (1, m, d) and the key projection in their bases."""
    by_head = w_k.unflatten(0, (len(centroids), -1))
    shared = share_anchors(centroids, by_head)
    w_k = (shared.bases @ by_head).flatten(0, 1)
    if b_k is not None:
        b_k = b_k.unflatten(0, (len(centroids), -1, 1))
        b_k = (shared.bases @ b_k).flatten()
    return shared.anchors[None], w_k, b_k, shared.residual


def _vanilla(
    attn: SelfAttention, source: Mapping[str, Tensor], inventory: Inventory
) -> dict[str, Tensor]:
    state = {
        name: source[name]
        for name in ('qkv.weight', 'proj.weight', 'proj.bias')
    }
    bias = source.get('qkv.bias')
    if bias is not None and attn.qkv.bias is None:
        raise UsageError(
            'the checkpoint has query biases, without which vanilla '
            'attention computes something else: set '
            'attn_cfg=dict(qkv_bias=True) in the backbone'
        )
    kind = 'query, key and value projections'
    inventory.add('carried', kind, source['qkv.weight'])
    if bias is not None:
        state['qkv.bias'] = bias
        inventory.add('carried', kind, bias)
    elif attn.qkv.bias is not None:
        state['qkv.bias'] = torch.zeros_like(attn.qkv.bias)
        inventory.add('made', 'biases', attn.qkv.bias, note='zero')
    inventory.add(
        'carried',
        'output projections',
        source['proj.weight'],
        source['proj.bias'],
    )
    return state


def _queries(
    attn: QueryAnchorAttention,
    weight: Tensor,
    bias: Tensor | None,
    state: dict[str, Tensor],
    inventory: Inventory,
) -> None:
    """The query projection, for a layer that has one."""
    state['q.weight'] = weight
    inventory.add('carried', 'query projections', weight)
    if bias is not None and attn.q.bias is not None:
        state['q.bias'] = bias
        inventory.add('carried', 'query projections', bias)
    elif bias is not None:
        # It adds the same to the similarities of a key to all anchors.
        inventory.add(
            'dropped',
            'query biases',
            bias,
            note='cancel in the softmax over anchors',
        )
    elif attn.q.bias is not None:
        state['q.bias'] = torch.zeros_like(attn.q.bias)
        inventory.add('made', 'biases', attn.q.bias, note='zero')


def _biases(
    attn: BaseAttention,
    source: Mapping[str, Tensor],
    b_k: Tensor | None,
    b_v: Tensor | None,
    state: dict[str, Tensor],
    inventory: Inventory,
) -> None:
    """Key, value and output biases of anchor attention.

    Values are averaged with weights that sum to 1, so their bias passes
    through unchanged and may as well be added behind the output projection.
    """
    weight, bias = source['proj.weight'], source['proj.bias']
    inventory.add('carried', 'output projections', weight, bias)
    state.update({'proj.weight': weight, 'proj.bias': bias})
    if b_v is None:
        if attn.kv.bias is not None:
            state['kv.bias'] = torch.zeros_like(attn.kv.bias)
            inventory.add('made', 'biases', attn.kv.bias, note='zero')
    elif attn.kv.bias is not None:
        state['kv.bias'] = torch.cat((b_k, b_v))
        inventory.add('carried', 'key and value biases', b_k, b_v)
    elif 'dwc_v.weight' in source:
        raise UsageError(
            'the checkpoint has value biases and convolves its values: the '
            'biases do not fold into the output projection then; set '
            'attn_cfg=dict(qkv_bias=True) in the backbone'
        )
    else:
        state['proj.bias'] = bias.double() + weight.double() @ b_v
        inventory.add(
            'carried',
            'value biases',
            b_v,
            note='folded into the biases of the output projections',
        )
        inventory.add(
            'dropped',
            'key biases',
            b_k,
            note="cancel in the source's softmax over keys",
        )
