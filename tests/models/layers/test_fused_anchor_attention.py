import io

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from anchorformer_mm.models.layers import (
    AnchorAttention,
    FusedAnchorAttention,
)


@pytest.mark.smoke
@pytest.mark.parametrize('order', ['auto', 'folded'])
@pytest.mark.parametrize('qkv_bias', [False, True])
@pytest.mark.parametrize('share_anchors', [False, True])
def test_a_fused_layer_is_the_same_function(order, qkv_bias, share_anchors):
    torch.manual_seed(0)
    layer = AnchorAttention(
        32,
        2,
        5,
        order=order,
        qkv_bias=qkv_bias,
        share_anchors=share_anchors,
        anchor_std=1.0,
        attn_drop=0.5,
    ).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    layer.eval()
    fused = layer.fuse()

    assert isinstance(fused, FusedAnchorAttention)
    for batch, n in ((1, 1), (3, 50)):
        x = torch.randn(batch, n, 32).double()
        expected = layer(x)
        size = expected.abs().max()
        assert (fused(x) - expected).abs().max() <= 1e-12 * size


def test_a_fused_layer_holds_the_folded_weights_only():
    fused = AnchorAttention(384, 6, 30).fuse()

    # h m D for the logits; values, output and its bias.
    count = sum(p.numel() for p in fused.parameters())
    assert count == 6 * 30 * 384 + 2 * 384**2 + 384
    assert not any(p.requires_grad for p in fused.parameters())


@pytest.mark.parametrize('n', [196, 1024])
def test_a_fused_layer_multiplies_no_weights(n):
    fused = AnchorAttention(384, 6, 30).fuse()
    with FlopCounterMode(display=False) as counter:
        fused(torch.randn(1, n, 384))

    macs = 3 * n * 6 * 30 * 384 + 2 * 30 * 384**2
    assert counter.get_total_flops() == 2 * macs


def test_changing_the_layer_afterwards_changes_nothing():
    layer = AnchorAttention(32, 2, 5).eval()
    fused = layer.fuse()
    x = torch.randn(1, 9, 32)
    before = fused(x)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert torch.equal(fused(x), before)


@pytest.mark.parametrize(
    'kwargs', [dict(dwc_v=True), dict(num_anchors=64), dict(order='paper')]
)
def test_a_layer_that_is_better_off_as_it_is_stays(kwargs):
    layer = AnchorAttention(32, 2, **kwargs)

    assert layer.fuse() is layer


@pytest.mark.parametrize('dynamo', [False, True])
def test_onnxruntime_computes_the_same_at_other_sizes(dynamo):
    if dynamo:
        pytest.importorskip('onnxscript', reason='the exporter needs it')
    ort = pytest.importorskip('onnxruntime')
    fused = AnchorAttention(32, 2, 5, anchor_std=1.0).fuse()
    file = io.BytesIO()
    kwargs = (
        dict(dynamic_shapes=({0: 'batch', 1: 'tokens'}, None))
        if dynamo
        else dict(dynamic_axes={'x': {0: 'batch', 1: 'tokens'}})
    )
    program = torch.onnx.export(
        fused,
        (torch.randn(2, 9, 32), None),
        None if dynamo else file,
        input_names=['x'],
        opset_version=18 if dynamo else 17,
        dynamo=dynamo,
        **kwargs,
    )
    if dynamo:
        program.save(file)
    session = ort.InferenceSession(file.getvalue())
    for batch, n in ((2, 9), (1, 1), (3, 40)):
        x = torch.randn(batch, n, 32)
        (got,) = session.run(None, {'x': x.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(got), fused(x), rtol=1e-4, atol=1e-5
        )
