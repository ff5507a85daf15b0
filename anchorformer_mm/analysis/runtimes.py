"""Networks made ready to run: as they are, compiled, and in ONNX Runtime."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from anchorformer_mm.analysis.forward_pass import (
    Build,
    Conditions,
    make_images,
    prepare,
    run,
)
from anchorformer_mm.analysis.peak_memory import Pass
from anchorformer_mm.utils.errors import UsageError

RUNTIMES = ('eager', 'compile', 'onnx')


def start_eager(build: Build, conditions: Conditions) -> Pass:
    """Make a network ready as it is."""
    model = prepare(build, conditions.device)
    images = make_images(conditions)
    return lambda: run(model, images, conditions.attention)


def start_compiled(build: Build, conditions: Conditions) -> Pass:
    """Make a network ready for ``torch.compile``; the first pass compiles."""
    model = torch.compile(prepare(build, conditions.device), dynamic=False)
    images = make_images(conditions)
    return lambda: run(model, images)


@contextmanager
def compiling() -> Iterator[None]:
    """Let nothing that was compiled before count, nor run uncompiled.

    Beyond a number of variants of one function torch would go on without
    compiling; here it is an error, and the number is larger.
    """
    import torch._dynamo

    config = torch._dynamo.config
    wanted = dict(
        recompile_limit=64,
        # Its name before.
        cache_size_limit=64,
        fail_on_recompile_limit_hit=True,
    )
    known = {k: v for k, v in wanted.items() if hasattr(config, k)}
    torch._dynamo.reset()
    try:
        with config.patch(known):
            yield
    finally:
        torch._dynamo.reset()


def start_onnx(
    path: str | Path, conditions: Conditions, *, arena: bool = True
) -> Pass:
    """Make an ONNX file ready in ONNX Runtime.

    Args:
        path: File with one input, the images.
        conditions: How it runs.
        arena: Whether memory that was taken is kept, as is its custom.

    Raises:
        UsageError: It has no such device.
    """
    # Needs a library that other runtimes do without.
    import onnxruntime

    provider = require_provider(conditions)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = conditions.threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = arena
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    # Its threads would go on after a pass, and disturb that of another.
    options.add_session_config_entry('session.force_spinning_stop', '1')
    session = onnxruntime.InferenceSession(str(path), options, [provider])
    if session.get_providers()[0] != provider[0]:
        raise UsageError(
            f'ONNX Runtime cannot start its {provider[0]}, and would run on '
            f'{session.get_providers()[0]}'
        )
    binding = session.io_binding()
    place = torch.device(conditions.device)
    where = place.type, place.index or 0
    images = onnxruntime.OrtValue.ortvalue_from_numpy(
        make_images(conditions).cpu().numpy(), *where
    )
    (port,) = session.get_inputs()

    def run_session() -> None:
        # The binding shares the memory of the images, but does not hold it.
        binding.bind_ortvalue_input(port.name, images)
        for output in session.get_outputs():
            binding.bind_output(output.name, *where)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        # As in torch, nobody keeps them; detections also vary in number.
        binding.clear_binding_outputs()

    return run_session


def require_provider(conditions: Conditions) -> tuple[str, dict]:
    """What of ONNX Runtime runs on the device, and its options.

    Raises:
        UsageError: It is not installed, or has nothing for the device.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            f'runtime onnx needs onnxruntime: {error}; pip install onnxruntime'
        ) from error
    if conditions.on_cpu:
        return 'CPUExecutionProvider', {}
    there = onnxruntime.get_available_providers()
    if 'CUDAExecutionProvider' not in there:
        raise UsageError(
            f'runtime onnx on {conditions.device} needs the '
            f'CUDAExecutionProvider; this ONNX Runtime has {there} (pip '
            'install onnxruntime-gpu)'
        )
    number = torch.device(conditions.device).index or 0
    return 'CUDAExecutionProvider', dict(device_id=number)
