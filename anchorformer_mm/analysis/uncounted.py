"""The operators that run in a model and have no multiply-accumulates."""

from collections import Counter
from collections.abc import Mapping

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Of torch.ops.aten, without the underscore of those that work in place.
KINDS = {
    'norms': 'native_layer_norm native_batch_norm native_group_norm '
    '_native_batch_norm_legit_no_training linalg_vector_norm norm',
    'activations': 'relu gelu silu sigmoid tanh hardtanh hardswish '
    'hardsigmoid leaky_relu elu mish softplus log_sigmoid_forward',
    'softmax': '_softmax _safe_softmax _log_softmax softmax log_softmax '
    'logsumexp',
    'arithmetic': 'add sub rsub mul div neg abs pow sqrt rsqrt exp log sin '
    'cos reciprocal clamp clamp_min clamp_max maximum minimum addcmul '
    'floor_divide remainder',
    'sums and extremes': 'sum mean var prod amax amin max min cumsum any all',
    'comparisons': 'eq ne lt le gt ge where logical_not logical_and '
    'bitwise_and bitwise_not masked_fill isfinite isnan isinf',
    'pooling': 'max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d '
    '_adaptive_avg_pool2d max_pool3d_with_indices',
    'resizing': 'upsample_nearest2d upsample_bilinear2d upsample_bicubic2d '
    '_upsample_bicubic2d_aa _upsample_bilinear2d_aa grid_sampler_2d',
    'sorting': 'sort topk argsort argmax argmin kthvalue',
    'distances': '_cdist_forward _euclidean_dist',
    'gathering': 'index index_put index_select gather scatter scatter_add '
    'scatter_reduce index_add embedding take_along_dim nonzero',
}
KIND_OF = {
    name: kind for kind, names in KINDS.items() for name in names.split()
}
# They make and move tensors, or their types, and compute nothing.
MOVES = (
    'clone copy cat stack empty empty_like empty_strided new_empty '
    'new_empty_strided new_zeros new_ones new_full zeros zeros_like ones '
    'ones_like full full_like fill zero arange linspace scalar_tensor '
    '_to_copy detach lift_fresh lift_fresh_copy constant_pad_nd roll '
    'repeat flip rot90 pixel_shuffle channel_shuffle resize as_strided '
    'im2col tril_indices _local_scalar_dense _reshape_copy promote_types '
    '_unsafe_view'
)
MOVING = frozenset(MOVES.split())


class UncountedOperators(TorchDispatchMode):
    """Counts calls of operators for which torch counts no operations.

    Views, copies and new tensors, which compute nothing, are left out.

    Attributes:
        calls: Names of operators of ``torch.ops.aten``, and their calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        # That of a call in place ends in an underscore.
        name = packet.__name__.rstrip('_')
        if (
            func.namespace == 'aten'
            and packet not in flop_registry
            and not func.is_view
            and name not in MOVING
        ):
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def in_words(calls: Mapping[str, int]) -> str:
    """Calls by kind, such as ``'softmax 12; norms 25; other: erfinv 1'``.

    Args:
        calls: Operators, and their calls.
    """
    kinds: Counter[str] = Counter()
    others = {}
    for name, count in calls.items():
        if name in KIND_OF:
            kinds[KIND_OF[name]] += count
        else:
            others[name] = count
    words = [f'{kind} {kinds[kind]}' for kind in KINDS if kind in kinds]
    if others:
        names = ', '.join(f'{n} {others[n]}' for n in sorted(others))
        words.append(f'other: {names}')
    return '; '.join(words) or 'nothing'
