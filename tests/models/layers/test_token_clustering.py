from decimal import Decimal

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from anchorformer_mm.models.layers import dpc_knn
from anchorformer_mm.models.layers import token_clustering as module

HALVES = [torch.bfloat16, torch.float16]


def slow_dpc_knn(x, counts, k=5):
    """The docstring for one image, pair by pair, with 28 digits.

    x (n, D); returns for each count the cluster of each token, a list.
    """
    x = np.asarray(x, dtype=np.float64)
    n, channels = x.shape
    squared = [
        [Decimal(float(((a - b) ** 2).sum())) / channels for b in x] for a in x
    ]
    k = min(k, n)
    density = [(-sum(sorted(row)[:k]) / k).exp() for row in squared]
    largest = max(map(max, squared))

    def separation(i):
        denser = [
            squared[i][j]
            for j in range(n)
            if (-density[j], j) < (-density[i], i)
        ]
        return min(denser, default=largest).sqrt()

    score = [density[i] * separation(i) for i in range(n)]
    order = sorted(range(n), key=lambda i: (-score[i], i))
    partitions = []
    for count in counts:
        centres = sorted(order[:count])
        ids = [
            min(range(len(centres)), key=lambda c: row[centres[c]])
            for row in squared
        ]
        for own, centre in enumerate(centres):
            ids[centre] = own
        partitions.append(ids)
    return partitions


def expected(x, counts, k=5):
    """Of a batch, as tensors."""
    images = zip(*(slow_dpc_knn(image, counts, k) for image in x), strict=True)
    return [torch.tensor(ids) for ids in images]


def assert_clusters(found, reference):
    for ids, wanted in zip(found, reference, strict=True):
        assert ids.dtype == torch.int64
        assert torch.equal(ids, wanted)


def sets_of(ids):
    """A partition, whatever the clusters are called."""
    return {
        frozenset((ids == c).nonzero().flatten().tolist())
        for c in ids.unique()
    }


def integers_of_zero_mean(n, channels, spread, seed):
    """Tokens with many equal distances, in all of which nothing is rounded.

    The mean is exactly zero: one half mirrors the other. ``channels`` must be
    a power of four.
    """
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(
        -spread, spread + 1, (n // 2, channels), generator=generator
    )
    x = torch.cat((half, -half, torch.zeros(n % 2, channels)))
    return x[torch.randperm(n, generator=generator)]


@pytest.mark.smoke
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ('n', 'channels', 'k'), [(1, 3, 5), (2, 3, 5), (30, 1, 5), (25, 16, 40)]
)
def test_random_tokens_are_clustered_by_the_definition(n, channels, k, dtype):
    x = torch.randn(3, n, channels, dtype=dtype)
    counts = (1, 2, 7, n, n + 9)
    assert_clusters(dpc_knn(x, counts, k), expected(x, counts, k))


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 14),
    channels=st.sampled_from([1, 4]),
    spread=st.integers(0, 3),
    k=st.integers(1, 16),
    counts=st.lists(st.integers(1, 16), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
)
def test_of_equals_the_lower_index_comes_first(
    n, channels, spread, k, counts, seed
):
    x = integers_of_zero_mean(n, channels, spread, seed).double()[None]
    assert_clusters(dpc_knn(x, counts, k), expected(x, counts, k))


@pytest.mark.parametrize('seed', range(3))
def test_of_equals_the_lower_index_comes_first_in_float32(seed):
    x = integers_of_zero_mean(37, 4, 2, seed)[None]
    counts = (4, 12, 30)
    assert_clusters(dpc_knn(x, counts), expected(x, counts))


def test_tokens_that_are_all_the_same_make_the_first_ones_centres():
    (ids,) = dpc_knn(torch.full((2, 20, 3), 2.5), [6])
    assert ids.tolist() == 2 * [[0, 1, 2, 3, 4, 5] + 14 * [0]]


def test_densities_below_the_smallest_float_still_differ():
    x = 300 * torch.randn(2, 20, 4)
    assert torch.exp(-torch.cdist(x, x).square() / 4).unique().numel() == 2
    counts = (3, 9)
    assert_clusters(dpc_knn(x, counts), expected(x, counts))


def test_a_common_offset_changes_nothing():
    x = torch.randint(-50, 50, (2, 32, 4)).float()
    counts = (5, 16)
    assert_clusters(dpc_knn(x + 2**16, counts), dpc_knn(x, counts))


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 40),
    count=st.integers(1, 45),
    spread=st.integers(0, 2),
    seed=st.integers(0, 10**6),
)
def test_no_cluster_is_empty(n, count, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-spread, spread + 1, (2, n, 2), generator=generator)
    for ids in dpc_knn(x.float(), [count])[0]:
        assert ids.unique().tolist() == list(range(min(count, n)))


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_the_order_of_distinct_tokens_does_not_matter(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, n, 3, generator=generator, dtype=torch.float64)
    order = torch.randperm(n, generator=generator)
    counts = (1, 4, 11)
    for ids, permuted in zip(
        dpc_knn(x, counts), dpc_knn(x[:, order], counts), strict=True
    ):
        assert sets_of(ids[0, order]) == sets_of(permuted[0])


def test_numbers_of_clusters_do_not_disturb_each_other():
    x = torch.randn(2, 30, 4)
    counts = (9, 2, 30, 9, 50)
    alone = [dpc_knn(x, [count])[0] for count in counts]
    assert_clusters(dpc_knn(x, counts), alone)


def test_an_image_is_clustered_as_if_alone():
    x = torch.randn(4, 24, 4, dtype=torch.float64)
    x[1] *= 100
    valid = torch.rand(4, 24) < 0.7
    for extra in ((), (5, valid)):
        both = dpc_knn(x, [5], *extra)[0]
        for i in range(4):
            one = [e[i : i + 1] if torch.is_tensor(e) else e for e in extra]
            assert torch.equal(both[i], dpc_knn(x[i : i + 1], [5], *one)[0][0])


class LargestTensor(TorchDispatchMode):
    """Remember the element count of the largest result of any operator."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.numel())
        return out


@pytest.mark.parametrize(('limit', 'images'), [(1, 1), (2 * 20**2 + 1, 2)])
@pytest.mark.parametrize('padded', [False, True])
def test_large_batches_are_clustered_in_parts(
    limit, images, padded, monkeypatch
):
    x = torch.randn(5, 20, 4)
    valid = torch.rand(5, 20) < 0.6 if padded else None
    whole = dpc_knn(x, (3, 8), valid=valid)
    monkeypatch.setattr(module, '_MAX_PAIRS', limit)
    with LargestTensor() as mode:
        parts = dpc_knn(x, (3, 8), valid=valid)
    assert_clusters(parts, whole)
    assert mode.numel == images * 20**2


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(0, 10),
    padding=st.integers(0, 10),
    content=st.sampled_from([0.0, -7.0, 1e30, torch.inf, torch.nan]),
    spread=st.sampled_from([0, 2, None]),
    count=st.integers(1, 12),
    seed=st.integers(0, 10**6),
)
def test_what_is_not_valid_changes_nothing(
    n, padding, content, spread, count, seed
):
    """Neither the order of ties nor anything else."""
    if not n + padding:
        return
    generator = torch.Generator().manual_seed(seed)
    if spread is None:
        tokens = torch.randn(n, 4, generator=generator)
    else:
        tokens = integers_of_zero_mean(n, 4, spread, seed)
    place = torch.randperm(n + padding, generator=generator)[:n].sort().values
    x = torch.full((1, n + padding, 4), content, dtype=torch.float64)
    x[0, place] = tokens.double()
    valid = torch.zeros(1, n + padding, dtype=torch.bool)
    valid[0, place] = True
    (ids,) = dpc_knn(x, [count], valid=valid)
    assert ids.min() >= 0
    assert ids.max() < min(count, n + padding)
    if n:
        (alone,) = dpc_knn(tokens.double()[None], [count])
        assert sets_of(ids[0, place]) == sets_of(alone[0])
    if n >= count:
        assert torch.equal(ids[:, place], alone)


def test_fewer_valid_tokens_than_neighbours_take_what_there_is():
    x = torch.randn(30, 12, 3, dtype=torch.float64)
    valid = torch.zeros(30, 12, dtype=torch.bool)
    valid[:, 3:7] = True
    found = dpc_knn(x, (2, 3), valid=valid)
    assert_clusters([ids[:, 3:7] for ids in found], dpc_knn(x[:, 3:7], (2, 3)))


@pytest.mark.parametrize('dtype', HALVES)
def test_half_precision_is_clustered_in_float32(dtype):
    x = torch.randn(1, 150, 16).to(dtype)
    reference = dpc_knn(x.float(), (10, 40))
    assert_clusters(dpc_knn(x, (10, 40)), reference)
    with torch.autocast('cpu', dtype=dtype):
        assert_clusters(dpc_knn(x, (10, 40)), reference)
        assert_clusters(dpc_knn(x.float(), (10, 40)), reference)


def test_clustering_is_repeatable_and_has_no_gradient():
    x = torch.randn(2, 30, 4).round().requires_grad_()
    first = dpc_knn(x, [7])
    assert not first[0].requires_grad
    torch.manual_seed(1)
    assert_clusters(dpc_knn(x, [7]), first)


class Clustering(torch.nn.Module):
    def forward(self, x, valid):
        return (*dpc_knn(x, (4, 9)), *dpc_knn(x, (4, 9), valid=valid))


def test_ties_are_settled_the_same_in_onnxruntime(tmp_path):
    x = torch.stack([integers_of_zero_mean(25, 4, 1, i) for i in range(3)])
    # What is valid has a mean of zero too.
    valid = torch.ones(3, 25, dtype=torch.bool)
    for i in range(3):
        zero = (x[i] == 0).all(1).nonzero()[0]
        valid[i, zero] = False
    path = tmp_path / 'clustering.onnx'
    torch.onnx.export(Clustering(), (x, valid), path, dynamo=False)
    session = onnxruntime.InferenceSession(path)
    names = [i.name for i in session.get_inputs()]
    outs = session.run(
        None, dict(zip(names, (x.numpy(), valid.numpy()), strict=True))
    )
    assert_clusters(map(torch.from_numpy, outs), Clustering()(x, valid))
