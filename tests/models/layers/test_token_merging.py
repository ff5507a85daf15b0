from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorformer_mm.models.layers import merge_tokens

HALVES = [torch.bfloat16, torch.float16]


def slow_merge(x, logits, assignment, count):
    """One image, cluster by cluster; decimals hold any power of e."""
    merged = np.zeros((count, x.shape[1]))
    filled = np.zeros(count, dtype=bool)
    for c in range(count):
        members = [i for i, own in enumerate(assignment) if own == c]
        if members:
            p = [Decimal(float(logits[i])).exp() for i in members]
            weights = [float(value / sum(p)) for value in p]
            merged[c] = sum(
                w * np.asarray(x[i], dtype=np.float64)
                for w, i in zip(weights, members, strict=True)
            )
            filled[c] = True
    return merged, filled


def random_clusters(n=23, count=6, channels=5, dtype=torch.float64):
    """Tokens of two images; cluster 4 is empty."""
    x = torch.randn(2, n, channels, dtype=dtype)
    logits = 3 * torch.randn(2, n, dtype=dtype)
    assignment = torch.randint(0, count - 1, (2, n))
    assignment[assignment == 4] = count - 1
    return x, logits, assignment, count


def assert_merged(out, x, logits, assignment, count, **tolerance):
    merged, filled = out
    for i in range(x.shape[0]):
        wanted, has = slow_merge(x[i], logits[i], assignment[i], count)
        torch.testing.assert_close(
            merged[i].double(), torch.from_numpy(wanted), **tolerance
        )
        assert torch.equal(filled[i], torch.from_numpy(has))


@pytest.mark.smoke
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_merged_tokens_are_weighted_means(dtype):
    args = random_clusters(dtype=dtype)
    out = merge_tokens(*args)
    assert out[0].dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert_merged(out, *args, rtol=tolerance, atol=tolerance)
    # An empty cluster is flagged, and zero to the bit.
    assert not out[1][:, 4].any()
    assert (out[0][:, 4] == 0).all()


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 60),
    count=st.integers(1, 70),
    size=st.floats(0, 1e4),
    seed=st.integers(0, 10**6),
)
def test_weights_of_a_cluster_sum_to_one(n, count, size, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = size * (2 * torch.rand(3, n, generator=generator) - 1)
    assignment = torch.randint(count, (3, n), generator=generator)
    merged, filled = merge_tokens(
        torch.ones(3, n, 2), logits, assignment, count
    )
    torch.testing.assert_close(
        merged, filled[..., None].float().expand_as(merged)
    )


def test_any_importance_gives_finite_tokens_and_gradients():
    x = torch.randn(1, 6, 3, requires_grad=True)
    logits = torch.tensor([[-1e4, 1e4, 1e4, -1e4, -1e4, -1e4]])
    logits.requires_grad_()
    assignment = torch.tensor([[0, 0, 0, 1, 1, 2]])
    merged, filled = merge_tokens(x, logits, assignment, 3)
    assert filled.all()
    wanted = torch.stack((x[0, 1:3].mean(0), x[0, 3:5].mean(0), x[0, 5]))
    torch.testing.assert_close(merged[0], wanted)
    merged.square().sum().backward()
    assert x.grad.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize('content', [1e30, torch.inf, torch.nan])
def test_tokens_that_are_not_valid_are_not_merged(content):
    x, logits, assignment, count = random_clusters()
    # All of cluster 2 is invalid in the second image.
    valid = torch.rand(2, 23) < 0.7
    valid[1] &= assignment[1] != 2
    x[~valid] = content
    logits[~valid] = content
    x.requires_grad_()
    logits.requires_grad_()
    merged, filled = merge_tokens(x, logits, assignment, count, valid)
    for i in range(2):
        keep = valid[i]
        alone = merge_tokens(
            *(t[i : i + 1, keep] for t in (x, logits, assignment)), count
        )
        torch.testing.assert_close(merged[i], alone[0][0])
        assert torch.equal(filled[i], alone[1][0])
    assert not filled[1, 2]
    merged.square().sum().backward()
    for grad in (x.grad, logits.grad):
        assert (grad[~valid] == 0).all()
        assert grad[valid].isfinite().all()


def test_gradients_reach_tokens_and_importance():
    x, logits, assignment, count = random_clusters(n=9, channels=2)
    valid = torch.rand(2, 9) < 0.8
    for extra in (None, valid):
        inputs = [t.clone().requires_grad_() for t in (x, logits)]
        assert torch.autograd.gradcheck(
            lambda x, s, extra=extra: merge_tokens(
                x, s, assignment, count, extra
            )[0],
            inputs,
        )


@pytest.mark.parametrize('dtype', HALVES)
def test_half_precision_is_merged_in_float32(dtype):
    # Sums of so many terms would be far off in half precision.
    x = 1 + torch.rand(1, 3000, 4).to(dtype)
    logits = torch.randn(1, 3000).to(dtype)
    assignment = torch.randint(3, (1, 3000))
    reference, _ = merge_tokens(x.float(), logits.float(), assignment, 3)
    merged, _ = merge_tokens(x, logits, assignment, 3)
    assert merged.dtype == dtype
    assert torch.equal(merged, reference.to(dtype))
    with torch.autocast('cpu', dtype=dtype):
        merged, _ = merge_tokens(x.float(), logits, assignment, 3)
    assert merged.dtype == torch.float32
    assert torch.equal(merged, reference)
