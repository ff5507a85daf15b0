"""The same result in other precisions, compiled and exported; memory."""

import math

import onnxruntime
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anchorformer_mm.models.layers import ClusterAttention

HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize('dtype', HALVES)
def test_autocast_clusters_the_same_and_stays_near_float32(dtype):
    layer = ClusterAttention(32, 4, sr_ratio=4, window_size=8)
    x = torch.randn(2, 15 * 11, 32, requires_grad=True)
    hw_shape = (15, 11)

    def run():
        out = layer(x, hw_shape)
        grads = torch.autograd.grad(
            out.float().square().sum(),
            [x, *layer.parameters()],
        )
        return out, grads

    out, grads = run()
    clusters = layer.cluster(x, hw_shape)
    with torch.autocast('cpu', dtype=dtype):
        low, low_grads = run()
        for ours, wanted in zip(
            layer.cluster(x, hw_shape), clusters, strict=True
        ):
            assert torch.equal(ours[0], wanted[0])
    assert low.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert (low.float() - out).abs().max() <= 16 * eps
    for ours, wanted in zip(low_grads, grads, strict=True):
        assert ours.isfinite().all()
        error = (ours - wanted).norm()
        # That of the importance's bias is nothing but rounding.
        assert error <= 8 * eps * wanted.norm() or wanted.numel() == 1


@pytest.mark.parametrize('dtype', HALVES)
def test_a_layer_of_half_precision_stays_near_float32(dtype):
    layer = ClusterAttention(32, 4, sr_ratio=4, window_size=8).to(dtype)
    x = torch.randn(2, 15 * 11, 32).to(dtype)
    out = layer(x, (15, 11))
    assert out.dtype == dtype
    wanted = layer.float()(x.float(), (15, 11))
    error = (out.float() - wanted).abs().max()
    assert error <= 16 * torch.finfo(dtype).eps


class LargestTensor(TorchDispatchMode):
    """Remember the element count of the largest result of any operator."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.numel())
        return out


def test_memory_is_linear_in_the_tokens_of_a_map_with_windows():
    layer = ClusterAttention(16, 2, sr_ratio=4, window_size=8)
    largest = []
    for hw_shape in ((16, 16), (16, 32), (32, 32)):
        n = math.prod(hw_shape)
        x = torch.randn(1, n, 16, requires_grad=True)
        with LargestTensor() as mode:
            layer(x, hw_shape).sum().backward()
        largest.append(mode.numel)
    # The pairs of all windows, nothing larger, forward and backward.
    assert largest == [64 * n for n in (256, 512, 1024)]


class OnMap(torch.nn.Module):
    """The layer on a map, whose size is known to no one before."""

    def __init__(self, **kwargs):
        super().__init__()
        self.layer = ClusterAttention(16, 2, sr_ratio=2, **kwargs)

    def forward(self, x):
        return self.layer(x.flatten(2).transpose(1, 2), x.shape[2:])


@torch.no_grad()
def test_compiled_layer_equals_eager():
    layer = OnMap(window_size=4)
    # A graph for each size: the one for all takes long to compile.
    compiled = torch.compile(
        layer, backend='aot_eager', fullgraph=True, dynamic=False
    )
    # One map as a whole, one whose windows reach beyond it.
    for size in ((3, 4), (7, 9)):
        x = torch.randn(2, 16, *size)
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize(
    ('size', 'window_size', 'exporter'),
    [
        ((6, 8), 56, dict(dynamo=False)),
        # 15 clusters for 6 windows, of which four reach beyond the map.
        ((7, 9), 4, dict(dynamo=False)),
        ((7, 9), 4, dict(dynamo=True, verbose=False)),
    ],
)
def test_onnxruntime_computes_the_same(size, window_size, exporter, tmp_path):
    layer = OnMap(window_size=window_size).eval()
    x = torch.randn(2, 16, *size)
    path = tmp_path / 'layer.onnx'
    torch.onnx.export(layer, (x,), path, **exporter)
    session = onnxruntime.InferenceSession(path)
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = layer(x)
    torch.testing.assert_close(
        torch.from_numpy(out), expected, rtol=0, atol=1e-5
    )
