"""What ClusTR computes; its layers have tests of their own."""

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anchorformer_mm.analysis.complexity import count_complexity
from anchorformer_mm.models import ClusTR

TINY = dict(
    embed_dims=(16, 16, 32, 32),
    num_heads=(1, 1, 2, 2),
    num_layers=(1, 1, 1, 1),
    mlp_ratios=(2, 2, 2, 2),
)
DEPTHS = dict(
    tiny=(1, 2, 6, 1),
    small=(3, 5, 13, 2),
    base=(3, 5, 18, 3),
)
# With a linear head of 1,000 classes.
PARAMETERS = dict(tiny=11_682_417, small=22_690_941, base=40_246_210)


def tiny(**kwargs):
    return ClusTR(TINY, **kwargs).eval()


def shapes_of(outs):
    return [tuple(out.shape) for out in outs]


def expected_shapes(batch, height, width):
    return [
        (batch, dim, -(-height // stride), -(-width // stride))
        for dim, stride in zip(
            TINY['embed_dims'], ClusTR.out_strides, strict=True
        )
    ]


@pytest.mark.smoke
@pytest.mark.parametrize('arch', PARAMETERS)
def test_parameters_are_those_of_the_release(arch):
    with torch.device('meta'):
        modules = (ClusTR(arch), nn.Linear(512, 1000))
    parameters = [p for module in modules for p in module.parameters()]
    assert sum(p.numel() for p in parameters) == PARAMETERS[arch]


def closed_form(arch):
    """Products of the graph at 224 px but for distances, and those."""
    dense = distances = 0
    dims = (64, 128, 320 if arch == 'base' else 256, 512)
    for dim, before, kernel, side, sr_ratio, ratio, depth in zip(
        dims,
        (3, *dims[:3]),
        (7, 3, 3, 3),
        (56, 28, 14, 7),
        (8, 4, 2, 1),
        (8, 8, 4, 4),
        DEPTHS[arch],
        strict=True,
    ):
        n = side**2
        dense += n * kernel**2 * before * dim
        block = 2 * n * dim**2  # queries, projection
        block += n * ratio * dim * (2 * dim + 9)  # feed-forward network
        if sr_ratio > 1:
            block += n * dim  # importance
            distances += depth * n**2 * dim
        scales = (1, 4) if sr_ratio > 1 else (1,)
        for m in (scale * n // sr_ratio**2 for scale in scales):
            block += 2 * m * dim**2  # keys and values
            block += 2 * n * m * dim  # attention
        dense += depth * block
    return dense, distances


@pytest.mark.parametrize(
    ('arch', 'dense', 'distances', 'total'),
    [
        ('tiny', 2.42, 0.85, 3.266),
        ('small', 5.47, 2.41, 7.876),
        ('base', 8.33, 2.50, 10.835),
    ],
)
def test_macs_are_those_of_the_equations(arch, dense, distances, total):
    expected = closed_form(arch)
    assert expected[0] / 1e9 == pytest.approx(dense, abs=0.005)
    assert expected[1] / 1e9 == pytest.approx(distances, abs=0.005)
    macs = count_complexity(ClusTR(arch), (224, 224)).macs
    assert macs == sum(expected)
    assert macs / 1e9 == pytest.approx(total, abs=5e-4)


@settings(deadline=None, max_examples=15)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
)
def test_every_size_gives_maps_of_strides_4_to_32(batch, height, width):
    outs = tiny(window_size=9)(torch.rand(batch, 3, height, width))
    assert shapes_of(outs) == expected_shapes(batch, height, width)
    assert all(out.isfinite().all() for out in outs)


@pytest.mark.parametrize('size', [(1, 1), (37, 50), (133, 799)])
def test_sizes_that_do_not_fit_the_strides(size):
    with torch.no_grad():
        outs = tiny()(torch.rand(1, 3, *size))
    assert shapes_of(outs) == expected_shapes(1, *size)


def test_other_channels_than_those_of_an_image():
    assert tiny(in_channels=5)(torch.rand(1, 5, 32, 32))[0].shape[1] == 16


def test_images_of_a_batch_do_not_know_each_other():
    model = tiny(window_size=9).double()
    images = torch.rand(3, 3, 61, 75, dtype=torch.float64)
    alone = [model(image[None]) for image in images]
    for level, out in enumerate(model(images)):
        expected = torch.cat([outs[level] for outs in alone])
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('out_indices', [(0,), (3,), (1, 2), (0, 1, 2, 3)])
def test_out_indices_choose_the_levels(out_indices):
    model = tiny()
    images = torch.rand(1, 3, 64, 40)
    expected = [model(images)[i] for i in out_indices]
    part = tiny(out_indices=out_indices)
    part.load_state_dict(model.state_dict())
    assert len(part(images)) == len(out_indices)
    torch.testing.assert_close(list(part(images)), expected)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_frozen_stages_neither_learn_nor_drop(frozen_stages):
    model = tiny(frozen_stages=frozen_stages, drop_path_rate=0.1).train()
    assert [s.training for s in model.stages] == [
        i >= frozen_stages for i in range(4)
    ]
    outs = model(torch.rand(2, 3, 64, 96))
    if frozen_stages < 4:
        sum(out.sum() for out in outs).backward()
    for name, p in model.named_parameters():
        frozen = int(name.split('.')[1]) < frozen_stages
        assert p.requires_grad != frozen
        assert (p.grad is None) == frozen, name


def test_recomputed_blocks_give_the_same_gradients():
    plain = tiny(drop_path_rate=0.3).train()
    saving = tiny(drop_path_rate=0.3, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    images = torch.rand(3, 3, 64, 48)
    for model, runs in ((plain, 1), (saving, 2)):
        calls = []
        for stage in model.stages:
            stage.blocks[0].register_forward_pre_hook(
                lambda *_, calls=calls: calls.append(1)
            )
        torch.manual_seed(1)
        sum(out.square().sum() for out in model(images)).backward()
        assert len(calls) == 4 * runs
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_gradients_reach_every_parameter():
    model = tiny(drop_path_rate=0.1).train()
    sum(
        out.square().sum() for out in model(torch.rand(2, 3, 64, 64))
    ).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    # A cluster's weights are a softmax: alone what sets its tokens apart.
    importance = model.stages[0].blocks[0].attn.importance
    assert importance.weight.grad.abs().sum() > 0


def test_bfloat16_trains():
    model = tiny().train()
    with torch.autocast('cpu', torch.bfloat16):
        outs = model(torch.rand(2, 3, 64, 96))
        sum(out.float().square().mean() for out in outs).backward()
    assert all(out.isfinite().all() for out in outs)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_compiled_network_equals_eager():
    # Of 13 x 11 tokens: four windows that reach beyond the map.
    model = tiny(window_size=9)
    compiled = torch.compile(model, backend='aot_eager', dynamic=False)
    images = torch.rand(2, 3, 50, 43)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize('window_size', [56, 9])
def test_onnxruntime_computes_the_same(tmp_path, window_size):
    model = tiny(window_size=window_size)
    images = torch.rand(2, 3, 61, 75)
    path = tmp_path / 'network.onnx'
    torch.onnx.export(model, (images,), path, dynamo=False)
    session = onnxruntime.InferenceSession(path)
    outs = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    for out, expected in zip(outs, model(images), strict=True):
        torch.testing.assert_close(
            torch.from_numpy(out), expected, rtol=1e-4, atol=1e-5
        )
