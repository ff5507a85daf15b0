"""Anchors on a map: where they prefer to look, for maps of any size."""

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor


class MapAnchors(BaseModule):
    """Position bias of anchors on a map, and how checkpoints fit it.

    To be defined by the layer: ``attention_biases_h`` (h, m, H) and
    ``attention_biases_w`` (h, m, W), for h heads and m anchors, and maybe
    ``anchors``. The start of the tables' names is LeViT's, whose schedule
    spares them weight decay.
    """

    def position_bias(self, height: int, width: int) -> Tensor:
        """What position adds to the logits, shape (h, height * width, m)."""
        rows = _resized(self.attention_biases_h, height).unsqueeze(-1)
        columns = _resized(self.attention_biases_w, width).unsqueeze(-2)
        return (rows + columns).flatten(2).transpose(1, 2)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Fit tables of another length; refuse other heads and anchors.

        Raises:
            ValueError: A shape differs otherwise. mmengine's loader would
                log it, and go on with weights at random.
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


def _resized(table: Tensor, length: int) -> Tensor:
    """(h, m, L) -> (h, m, length), by linear interpolation."""
    # In a trace or compilation for any size, a length has no value yet.
    if type(length) is int and table.shape[-1] == length:
        return table
    return F.interpolate(table, length, mode='linear', align_corners=False)
