from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from anchorformer_mm.analysis.forward_pass import Conditions, make_images
from anchorformer_mm.analysis.peak_memory import cpu_memory
from anchorformer_mm.analysis.runtimes import (
    compiling,
    require_provider,
    start_compiled,
    start_onnx,
)
from anchorformer_mm.utils.errors import UsageError

onnxruntime = pytest.importorskip('onnxruntime')
SMALL = Conditions((256, 256))


@pytest.fixture
def upsampling(tmp_path):
    """An ONNX file that makes 48 MiB of an image of 768 KiB."""
    path = tmp_path / 'up.onnx'
    torch.onnx.export(
        nn.Upsample(scale_factor=8),
        (make_images(SMALL),),
        str(path),
        input_names=['images'],
        dynamo=False,
    )
    return path


def test_memory_in_onnx_runtime_is_what_a_pass_holds(upsampling):
    start = partial(start_onnx, upsampling, SMALL, arena=False)
    assert cpu_memory(start) == pytest.approx(48 * 2**20, abs=2**20)


def test_onnx_runtime_runs_the_images_on_as_many_threads(
    upsampling, monkeypatch
):
    sessions = []

    class Noted(onnxruntime.InferenceSession):
        def __init__(self, path, options, providers):
            super().__init__(path, options, providers)
            sessions.append((self, options))

        def run_with_iobinding(self, binding):
            super().run_with_iobinding(binding)
            self.outputs = binding.copy_outputs_to_cpu()

    monkeypatch.setattr(onnxruntime, 'InferenceSession', Noted)
    run = start_onnx(upsampling, Conditions((256, 256), threads=2))
    run()
    run()
    ((session, options),) = sessions
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 1
    (output,) = session.outputs
    expected = make_images(SMALL).repeat_interleave(8, 2)
    expected = expected.repeat_interleave(8, 3).numpy()
    assert np.array_equal(output, expected)


def test_onnx_runtime_without_the_device_is_named(monkeypatch):
    class OnCuda(Conditions):
        on_cpu = False

    monkeypatch.setattr(
        onnxruntime, 'get_available_providers', lambda: ['CPU...']
    )
    with pytest.raises(
        UsageError, match=r"needs the CUDAExecutionProvider; .*\['CPU...'\]"
    ):
        require_provider(OnCuda((8, 8)))


def test_compiling_is_for_these_sizes_and_without_gradients(monkeypatch):
    compiled = []

    def backend(graph, inputs):
        assert not torch.is_grad_enabled()
        compiled.append([tuple(x.shape) for x in inputs])
        return graph.forward

    monkeypatch.setattr(
        torch, 'compile', partial(torch.compile, backend=backend)
    )
    with compiling():
        for side in (8, 16):
            run = start_compiled(nn.ReLU, Conditions((side, side)))
            run()
            run()
    assert compiled == [[(1, 3, 8, 8)], [(1, 3, 16, 16)]]


def test_nothing_runs_uncompiled_after_many_variants():
    runs = []

    def backend(graph, inputs):
        runs.append(len(inputs))
        return graph.forward

    # More than torch's usual eight.
    with compiling():
        model = torch.compile(nn.ReLU(), backend=backend, dynamic=False)
        for side in range(1, 13):
            model(torch.ones(side))
    assert len(runs) == 12
