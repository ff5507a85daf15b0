"""Compare time and memory of models side by side, in one process.

Models are configs of this project or of an OpenMMLab library, run by torch as
they are, by torch.compile, ONNX Runtime, OpenVINO or ncnn, or ONNX files. All
rows of a size and a number of threads take turns, so that a disturbance of the
machine meets all alike. Weights are random where there are no checkpoints.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from textwrap import fill, shorten
from time import perf_counter, sleep
from typing import NamedTuple

import cv2
import numpy as np
import torch
from common import (
    Pass,
    a_count,
    a_device,
    a_file,
    argument_parser,
    machine_line,
    on_cpu,
    onnx_session,
    peak_memory,
    progress,
    versions,
    write_json,
)
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, revert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from anchorformer_mm.analysis.complexity import raw_outputs
from anchorformer_mm.apis import (
    build_model,
    load_model,
    read_config,
    require_image,
)
from anchorformer_mm.deployment.networks import deployable
from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.text import markdown_table

RUNTIMES = {
    'eager': 'torch as it is',
    'math': 'torch with plain products in place of its fused attention',
    'compile': 'torch.compile',
    'onnx': 'ONNX Runtime',
    'openvino': 'OpenVINO',
    'openvino-bf16': 'OpenVINO in bfloat16',
    'ncnn': 'ncnn, by way of pnnx',
}
OF_FILES = ('onnx', 'openvino', 'openvino-bf16', 'ncnn')
# Before each pass, seconds: threads that the last one left waiting for more
# work fall asleep.
REST = 0.005
CONVENTION = """\
Time is that of {runs} passes which all rows of a size and number of threads
take in turn, after {warm_up} that do not count, on {images}. Memory is the
peak of a pass beyond weights and images, on a CPU in a process of its own
(in ONNX Runtime without its arena, which keeps what it took; OpenVINO and ncnn
have no figure). A model runs from pixels to boxes with scores of all priors,
logits or probabilities; NMS, resizing of images and reading of files are left
out{nms}. Ratios are to {peer}, the first row of the same size and threads:
below 1 it needs less."""


@dataclass(frozen=True)
class Conditions:
    """Conditions that a network runs under.

    Args:
        shape: Height and width of the images, px.
        image: File of the image that all of a pass are, resized to
            ``shape``; None for noise, the same each time.
    """

    shape: tuple[int, int]
    batch_size: int = 1
    device: str = 'cpu'
    threads: int = 1
    image: str | None = None

    @property
    def size(self) -> str:
        """Such as ``'224 x 224'``."""
        return '{} x {}'.format(*self.shape)

    def images(self) -> Tensor:
        """RGB from 0 to 255, float32, (B, 3, H, W)."""
        height, width = self.shape
        if self.image is None:
            shape = (self.batch_size, 3, height, width)
            seed = torch.Generator().manual_seed(0)
            return (255 * torch.rand(shape, generator=seed)).to(self.device)
        pixels = cv2.resize(cv2.imread(self.image), (width, height))
        image = torch.from_numpy(pixels).flip(-1).permute(2, 0, 1).float()
        return image.repeat(self.batch_size, 1, 1, 1).to(self.device)


class Candidate(NamedTuple):
    """A network to measure: what makes it and what exports it, or a file."""

    name: str
    build: Callable[[], nn.Module] | None = None
    export: Callable[[Path, Conditions], None] | None = None
    file: Path | None = None


@dataclass
class Result:
    """Figures of a network.

    Attributes:
        task: What the network computes.
        weights: Parameters and buffers, or the ONNX file that was given,
            bytes.
        memory: Peak of a pass beyond weights and images, bytes; None where
            nothing tells it.
        first: Time of the first pass, with what is compiled in it, seconds.
        seconds: Time of each pass that counts.
    """

    name: str
    runtime: str
    conditions: Conditions
    task: str
    weights: int
    memory: int | None = None
    first: float = 0.0
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median time of a pass, seconds."""
        return float(np.median(self.seconds))

    @property
    def p90(self) -> float:
        """Time that 90 % of the passes keep within, seconds."""
        return float(np.percentile(self.seconds, 90))

    @property
    def label(self) -> str:
        return f'{self.name} at {self.conditions.size} ({self.runtime})'


# What runs


class RawOutputs(nn.Module):
    """A network from images (B, 3, H, W), 0 to 255, to its raw outputs."""

    def __init__(self, model: nn.Module, task: str) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, images: Tensor) -> object:
        return raw_outputs(self.model, images / 255)


def weighted_model(cfg: Config, checkpoint: str | None) -> BaseModel:
    """Build the model of a config, with weights or the same random ones."""
    # It tells of every parameter.
    MMLogger.get_instance('mmengine').setLevel('WARNING')
    torch.manual_seed(0)
    if checkpoint is not None:
        return load_model(cfg, checkpoint)
    model = build_model(cfg)
    # Some of mmpretrain's models return None from it.
    model.eval()
    return model


def build_network(cfg: Config, part: str, checkpoint: str | None) -> nn.Module:
    """Build what is measured; its attribute ``task`` says what it computes."""
    if part == 'backbone':
        if checkpoint is not None:
            backbone = weighted_model(cfg, checkpoint).backbone
        else:
            backbone = build_model(cfg, backbone_only=True)
        return RawOutputs(backbone, 'backbone')
    model = weighted_model(cfg, checkpoint)
    try:
        return deployable(model)
    except UsageError:
        return RawOutputs(model, 'raw outputs')


def export(
    cfg: Config,
    checkpoint: str | None,
    with_nms: bool,
    path: Path,
    conditions: Conditions,
) -> None:
    """Write the model of a config as an ONNX file for these conditions."""
    from anchorformer_mm.deployment.export import export_model

    export_model(
        weighted_model(cfg, checkpoint),
        path,
        shape=conditions.shape,
        batch_size=conditions.batch_size,
        with_nms=with_nms,
    )


def start_torch(
    build: Callable[[], nn.Module], conditions: Conditions, runtime: str
) -> Pass:
    """Make a network ready in torch; compiled, it compiles in its first pass.

    Norms that are synchronised between GPUs become plain ones.
    """
    model = revert_sync_batchnorm(build())
    # Some of mmpretrain's backbones return None from it.
    model.eval()
    model.to(conditions.device)
    if runtime == 'compile':
        model = torch.compile(model, dynamic=False)
    images = conditions.images()
    plain = runtime == 'math'

    @torch.no_grad()
    def run() -> None:
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)

    return run


@contextmanager
def compiling() -> Iterator[None]:
    """Let nothing that was compiled before count, nor run uncompiled.

    Beyond a number of variants of one function torch would go on without
    compiling; here it is an error, and the number is larger.
    """
    torch.compiler.reset()
    try:
        with torch._dynamo.config.patch(
            recompile_limit=64, fail_on_recompile_limit_hit=True
        ):
            yield
    finally:
        torch.compiler.reset()


def read_file(path: Path, conditions: Conditions) -> tuple[bytes, np.ndarray]:
    """Read an ONNX file with one input, images, and make the images.

    Raises:
        UsageError: It is for images of another shape, or no usable file.
    """
    from anchorformer_mm.deployment.onnx_model import read_onnx

    file = read_onnx(path)
    images = conditions.images().cpu().numpy()
    weights = {weight.name for weight in file.graph.initializer}
    (port,) = (i for i in file.graph.input if i.name not in weights)
    # An open dimension has a name or nothing.
    shape = [d.dim_value or '?' for d in port.type.tensor_type.shape.dim]
    pairs = zip(shape, images.shape, strict=True)
    if any(d not in ('?', size) for d, size in pairs):
        raise UsageError(
            f'{path} is for images {shape}, not {list(images.shape)}'
        )
    return file.SerializeToString(), images


def start_onnx(path: Path, conditions: Conditions, arena: bool = True) -> Pass:
    """Make a file ready in ONNX Runtime; its arena keeps memory once taken.

    Raises:
        UsageError: As :func:`read_file`, or it does not run on the device.
    """
    import onnxruntime

    file, array = read_file(path, conditions)
    place = torch.device(conditions.device)
    where = place.type, place.index or 0
    provider = ('CPUExecutionProvider', {})
    if not on_cpu(conditions.device):
        provider = ('CUDAExecutionProvider', dict(device_id=where[1]))
    session = onnx_session(file, conditions.threads, arena, provider)
    if session.get_providers()[0] != provider[0]:
        raise UsageError(f'ONNX Runtime cannot start its {provider[0]}')
    (port,) = session.get_inputs()
    images = onnxruntime.OrtValue.ortvalue_from_numpy(array, *where)
    binding = session.io_binding()

    def run() -> None:
        # The binding shares the memory of the images, but does not hold it.
        binding.bind_ortvalue_input(port.name, images)
        for output in session.get_outputs():
            binding.bind_output(output.name, *where)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        # As in torch, nobody keeps them; detections also vary in number.
        binding.clear_binding_outputs()

    return run


def start_openvino(path: Path, conditions: Conditions, precision: str) -> Pass:
    """Make a file, see :func:`read_file`, ready in OpenVINO.

    ``precision`` is ``'f32'`` or ``'bf16'``.
    """
    import openvino

    file, images = read_file(path, conditions)
    core = openvino.Core()
    options = dict(
        INFERENCE_PRECISION_HINT=precision,
        INFERENCE_NUM_THREADS=conditions.threads,
    )
    network = core.compile_model(core.read_model(file), 'CPU', options)
    request = network.create_infer_request()
    request.set_input_tensor(openvino.Tensor(images, shared_memory=True))

    def run() -> None:
        request.infer()
        # The tensor shares the memory of the images, but does not hold it.
        _ = images

    return run


def start_ncnn(path: Path, conditions: Conditions) -> Pass:
    """Make a file, see :func:`read_file`, ready in ncnn, in float32.

    One that pnnx or ncnn does not take is a UsageError.
    """
    import ncnn
    import pnnx

    _, images = read_file(path, conditions)
    net = ncnn.Net()
    net.opt.num_threads = conditions.threads
    net.opt.use_fp16_storage = net.opt.use_bf16_storage = False
    net.opt.use_fp16_packed = net.opt.use_fp16_arithmetic = False
    with TemporaryDirectory() as folder:
        # pnnx leaves files beside the one that it reads.
        file = copyfile(path, f'{folder}/x.onnx')
        size = f'inputshape=[{",".join(map(str, images.shape))}]f32'
        command = [pnnx.EXEC_PATH, file, size, 'fp16=0']
        subprocess.run(command, cwd=folder, capture_output=True)
        parts = f'{folder}/x.ncnn.param', f'{folder}/x.ncnn.bin'
        if net.load_param(parts[0]) or net.load_model(parts[1]):
            raise UsageError(f'pnnx and ncnn do not take {path}')
    # In the memory of the array an operator in place would crash.
    image = ncnn.Mat(images[0]).clone()

    def run() -> None:
        extractor = net.create_extractor()
        extractor.input('in0', image)
        if any(extractor.extract(n)[0] for n in net.output_names()):
            raise RuntimeError('ncnn lacks an output')

    return run


# Measuring


def measure(
    candidates: Sequence[Candidate],
    conditions: Sequence[Conditions],
    runtimes: Sequence[str],
    warm_up: int,
    runs: int,
    folder: Path,
) -> list[Result]:
    """Measure networks; those under the same conditions take turns.

    Raises:
        UsageError: A network does not run so.
    """
    results = []
    for each in conditions:
        torch.set_num_threads(each.threads)
        with compiling() if 'compile' in runtimes else nullcontext():
            entries = [
                _first_pass(candidate, each, runtime, folder)
                for candidate in candidates
                for runtime in runtimes
            ]
            _take_turns(entries, each, warm_up - 1, runs)
        results += [result for result, _ in entries]
    return results


def _first_pass(
    candidate: Candidate, conditions: Conditions, runtime: str, folder: Path
) -> tuple[Result, Pass]:
    """Memory and first pass of a network, and what runs the next ones."""
    result = Result(candidate.name, runtime, conditions, 'ONNX file', 0)
    try:
        if candidate.file is not None:
            result.weights = candidate.file.stat().st_size
        else:
            network = candidate.build()
            result.task = getattr(network, 'task', 'network')
            result.weights = sum(
                t.numel() * t.element_size()
                for t in (*network.parameters(), *network.buffers())
            )
        if runtime in OF_FILES:
            name = f'{candidate.name} {conditions.size}.onnx'
            path = candidate.file or folder / name
            if not path.is_file():
                candidate.export(path, conditions)
            # What keeps what it takes for a pass has no figure of memory.
            frugal = None
            if runtime == 'onnx':
                start = partial(start_onnx, path, conditions)
                frugal = partial(start, arena=False)
            elif runtime == 'ncnn':
                start = partial(start_ncnn, path, conditions)
            else:
                precision = 'f32' if runtime == 'openvino' else 'bf16'
                start = partial(start_openvino, path, conditions, precision)
        else:
            start = partial(start_torch, candidate.build, conditions, runtime)
            frugal = start
        # Where it runs out of memory on a CPU, it is in another process.
        if frugal and (on_cpu(conditions.device) or runtime != 'onnx'):
            result.memory = peak_memory(
                frugal, conditions.device, conditions.threads
            )
        run = start()
        begin = perf_counter()
        run()
        result.first = perf_counter() - begin
    except UsageError:
        raise
    except Exception as error:
        # Whatever an unknown network may raise.
        reason = shorten(f'{type(error).__name__}: {error}', 400)
        raise UsageError(f'{result.label} does not run: {reason}') from error
    progress(
        f'{result.label}: {mebibytes(result.memory)} MiB, first pass '
        f'{result.first:.1f} s'
    )
    return result, run


def _take_turns(
    entries: Sequence[tuple[Result, Pass]],
    conditions: Conditions,
    warm_up: int,
    runs: int,
) -> None:
    for i in range(-warm_up, runs):
        for result, run in entries:
            sleep(REST)
            start = perf_counter()
            run()
            seconds = perf_counter() - start
            if i >= 0:
                result.seconds.append(seconds)
        what = f'pass {i + 1} of {runs}' if i >= 0 else 'warm-up'
        progress(f'{conditions.size}, threads: {conditions.threads}: {what}')


# The report


def latency_table(results: Sequence[Result]) -> str:
    """Write results as a table of Markdown."""
    header = ['config', 'runtime', 'size', 'threads', 'weights (MiB)']
    header += ['memory (MiB)', 'ratio', 'median (ms)', 'p90 (ms)', 'ratio']
    peers: dict[tuple, Result] = {}
    lines = []
    for result in results:
        conditions = result.conditions
        key = conditions.shape, conditions.threads
        peer = peers.setdefault(key, result)
        line = [result.name, result.runtime, conditions.size]
        line += [str(key[1]) if on_cpu(conditions.device) else '-']
        line += [mebibytes(result.weights), mebibytes(result.memory)]
        line += [_ratio(result.memory, peer.memory)]
        line += [f'{1e3 * result.median:.1f}', f'{1e3 * result.p90:.1f}']
        lines.append([*line, _ratio(result.median, peer.median)])
    return markdown_table(header, lines)


def _ratio(value: float | None, of_peer: float | None) -> str:
    return f'{value / of_peer:.3f}' if value is not None and of_peer else '-'


def mebibytes(size: int | None) -> str:
    """Bytes in MiB, to one decimal."""
    return '-' if size is None else f'{size / 2**20:.1f}'


def parse_shape(text: str) -> tuple[int, int]:
    """Read a height and a width, such as ``'512x2048'``."""
    height, width = map(int, text.lower().split('x'))
    if min(height, width) < 1:
        raise ValueError
    return height, width


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    add = parser.add_argument
    text = "config files, or a library's own, mmdet::NAME; or ONNX files"
    add('configs', nargs='+', help=text)
    text = 'heights and widths of the images, px, such as 512x2048'
    shapes = dict(type=parse_shape, metavar='HxW', help=text)
    add('--shapes', required=True, nargs='+', **shapes)
    text = (
        'the model as it is deployed (of models that cannot be, up to the raw '
        'outputs), or its backbone alone'
    )
    parts = ['model', 'backbone']
    add('--part', choices=parts, default=parts[0], help=text)
    text = '; '.join(f'{k}: {v}' for k, v in RUNTIMES.items())
    runtimes = dict(choices=RUNTIMES, default=['eager'])
    add('--runtimes', nargs='+', **runtimes, help=text)
    text = 'let the ONNX file of a detector end in its NMS'
    add('--with-nms', action='store_true', help=text)
    add('--checkpoints', nargs='+', help='weights, one file for each config')
    add('--batch-size', type=a_count, default=1, help='images of a pass')
    add('--threads', nargs='+', type=a_count, default=[1], help='on a CPU')
    add('--device', type=a_device, default='cpu', help='cpu or one of CUDA')
    add('--warm-up', type=a_count, default=3, help='passes before the timed')
    add('--runs', type=a_count, default=10, help='timed passes')
    add('--image', help='picture in place of noise, resized to each size')
    add('--json', type=a_file, help='file for every figure')
    text = 'overrides of every config, as key=value pairs'
    add('--cfg-options', nargs='+', action=DictAction, help=text)
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    """Refuse before the work what cannot be measured."""
    if args.image is not None:
        require_image(args.image)
    runtimes = set(args.runtimes)
    files = runtimes & set(OF_FILES)
    if args.with_nms and (files < runtimes or args.part != 'model'):
        raise UsageError(
            f'--with-nms needs --runtimes {" or ".join(OF_FILES)} and --part '
            'model'
        )
    if files and args.part == 'backbone':
        raise UsageError(f'--runtimes {min(files)} needs --part model')
    if files - {'onnx'} and not on_cpu(args.device):
        raise UsageError(f'--runtimes {max(files)} needs --device cpu')
    if 'ncnn' in files and args.batch_size > 1:
        raise UsageError('--runtimes ncnn needs --batch-size 1')
    packages = ['ncnn', 'pnnx'] if 'ncnn' in files else []
    packages += ['openvino'] if files - {'onnx', 'ncnn'} else []
    for name in packages:
        if find_spec(name) is None:
            raise UsageError(f'{name} is not installed: pip install {name}')
    if args.checkpoints and len(args.checkpoints) != len(args.configs):
        raise UsageError('--checkpoints must be one file for each config')
    names = [Path(config).stem for config in args.configs]
    if len(set(names)) < len(names):
        raise UsageError(f'configs must have different names, got {names}')


def candidate_of(
    config: str, checkpoint: str | None, args: argparse.Namespace
) -> Candidate:
    """Read a config, or take a file, of a command line."""
    name = Path(config).stem
    if Path(config).suffix == '.onnx':
        if not set(args.runtimes) <= set(OF_FILES) or checkpoint is not None:
            raise UsageError(
                f'{config} needs --runtimes {" or ".join(OF_FILES)}, no '
                'checkpoint'
            )
        if not Path(config).is_file():
            raise UsageError(f'file not found: {config}')
        return Candidate(name, file=Path(config))
    cfg = read_config(config, args.cfg_options)
    return Candidate(
        name,
        partial(build_network, cfg, args.part, checkpoint),
        partial(export, cfg, checkpoint, args.with_nms),
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_args(args)
    # On a GPU threads have no part in it.
    conditions = [
        Conditions(shape, args.batch_size, args.device, count, args.image)
        for shape in args.shapes
        for count in args.threads[: None if on_cpu(args.device) else 1]
    ]
    checkpoints = args.checkpoints or [None] * len(args.configs)
    candidates = [
        candidate_of(config, checkpoint, args)
        for config, checkpoint in zip(args.configs, checkpoints, strict=True)
    ]
    with TemporaryDirectory() as folder:
        results = measure(
            candidates,
            conditions,
            args.runtimes,
            args.warm_up,
            args.runs,
            Path(folder),
        )
    hardware = (
        f'{machine_line(args.device)}; float32 if no other is told, images at '
        f'a time: {args.batch_size}'
    )
    tasks = {r.name: r.task for r in results}
    convention = CONVENTION.format(
        runs=args.runs,
        warm_up=args.warm_up,
        images='noise' if args.image is None else Path(args.image).name,
        nms=' but for NMS' if args.with_nms else '',
        peer=f'{results[0].name} ({results[0].runtime})',
    )
    outputs = 'Networks: ' + '; '.join(f'{n}: {t}' for n, t in tasks.items())
    parts = [latency_table(results), hardware, outputs, fill(convention, 79)]
    print('\n\n'.join(parts))
    if args.json is not None:
        rows = [asdict(r) | dict(median=r.median, p90=r.p90) for r in results]
        figures = dict(
            command=shlex.join(sys.argv if argv is None else argv),
            hardware=hardware,
            versions=versions(),
            warm_up=args.warm_up,
            results=rows,
        )
        write_json(figures, args.json)


if __name__ == '__main__':
    run_command_line(main)
