"""Show where the time of a training step of a detector goes.

The step is the config's own: model with random weights, losses, optimiser.
Images are noise, with boxes of the number and sizes of COCO. mmengine's log
tells how long a step waits for its data (data_time).
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from statistics import median
from time import perf_counter
from unittest.mock import patch

import torch
from common import (
    a_count,
    a_device,
    a_file,
    argument_parser,
    machine_line,
    progress,
    write_json,
)
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.structures import InstanceData

from anchorformer_mm.apis import (
    build_model,
    read_config,
)
from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.text import markdown_table

# The rest of the step: what a model does with the outputs of its parts.
LOSS = 'assignment and loss'
MODULES = dict(
    data_preprocessor='preprocessor',
    backbone='backbone',
    neck='neck',
    bbox_head='head',
)
METHODS = dict(backward='backward', step='optimiser', zero_grad='optimiser')
PARTS = (*MODULES.values(), LOSS, 'backward', 'optimiser')
# Boxes of an image, on average as in COCO, never none; and the log-normal form
# of a box's side at 640 x 480 px of which 41 % are below 32 px and 24 % above
# 96 px, COCO's small and large objects.
MEAN_BOXES, MOST_BOXES = 7.3, 63
LOG_SIDE, LOG_SIDE_DEVIATION = 3.73, 1.2


class Stopwatch:
    """Times parts, each without those that run within it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.running: list[str] = []
        self.since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._charge()
        self.running.append(name)
        try:
            yield
        finally:
            self._charge()
            self.running.pop()

    def _charge(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        now = perf_counter()
        if self.running:
            self.seconds[self.running[-1]] += now - self.since
        self.since = now

    def watch(
        self, owner: object, method: str, part: str
    ) -> AbstractContextManager:
        """Within the result, a method counts as a part."""
        original = getattr(owner, method)

        def timed(*args, **kwargs):
            with self.part(part):
                return original(*args, **kwargs)

        return patch.object(owner, method, timed)


def random_batch(num_classes: int, batch_size: int, size: int) -> dict:
    """Noise with random boxes, packed as mmdet's loaders pack them."""
    from mmdet.structures import DetDataSample

    meta = dict(img_shape=(size, size), ori_shape=(size, size))
    meta |= dict(scale_factor=(1.0, 1.0), flip=False)
    none = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    images, samples = [], []
    for _ in range(batch_size):
        count = torch.empty(1).geometric_(1 / MEAN_BOXES).int().item()
        count = min(count, MOST_BOXES)
        law = LOG_SIDE + LOG_SIDE_DEVIATION * torch.randn(count, 1)
        sides = (law + 0.25 * torch.randn(count, 2)).exp()
        sides = (sides * size / math.sqrt(480 * 640)).clamp(4, size)
        corners = torch.rand(count, 2) * (size - sides)
        boxes = torch.cat((corners, corners + sides), dim=1)
        labels = torch.randint(num_classes, (count,))
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        sample.ignored_instances = none
        samples.append(sample)
        images.append(torch.randint(256, (3, size, size), dtype=torch.uint8))
    return dict(inputs=images, data_samples=samples)


def build(
    cfg: Config, batch_size: int, device: str
) -> tuple[BaseModel, OptimWrapper]:
    """Build model, with random weights, and optimiser of a config.

    Of its hooks, ``ChannelsLastHook`` is heeded: it changes what a step
    costs. The rate is scaled to the batch if the config says for which it is.
    """
    if cfg.get('optim_wrapper') is None:
        raise UsageError(f'{cfg.filename} has no optim_wrapper')
    model = build_model(cfg)
    if getattr(model, 'bbox_head', None) is None:
        kind = type(model).__name__
        raise UsageError(f'model must be a one-stage detector, got {kind}')
    hooks = [hook['type'] for hook in cfg.get('custom_hooks') or ()]
    if 'anchorformer_mm.ChannelsLastHook' in hooks:
        model.to(memory_format=torch.channels_last)
    model.to(device)
    wrapper = build_optim_wrapper(model, deepcopy(cfg.optim_wrapper))
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    for group in wrapper.param_groups if base else ():
        group['lr'] *= batch_size / base
    return model, wrapper


def measure_steps(
    model: BaseModel, wrapper: OptimWrapper, args: argparse.Namespace
) -> dict[str, list[float]]:
    """Train, and time the parts of each step, seconds.

    Raises:
        UsageError: The loss is not finite: such steps do not take the time of
            those that learn.
    """
    results: dict[str, list[float]] = {part: [] for part in PARTS}
    watched = [
        (getattr(model, name), 'forward', part)
        for name, part in MODULES.items()
        if getattr(model, name, None) is not None
    ]
    watched += [(wrapper, name, part) for name, part in METHODS.items()]
    model.train()
    for i in range(-args.warm_up, args.steps):
        num_classes = model.bbox_head.num_classes
        batch = random_batch(num_classes, args.batch_size, args.size)
        stopwatch = Stopwatch(torch.device(args.device))
        with ExitStack() as stack:
            for owner, method, part in watched:
                stack.enter_context(stopwatch.watch(owner, method, part))
            with stopwatch.part(LOSS):
                loss = model.train_step(batch, wrapper)['loss'].item()
        if not math.isfinite(loss):
            raise UsageError(f'the loss is {loss}: lower the rate')
        progress(f'step {i + 1} of {args.steps}: loss {loss:.3f}')
        for part, seconds in stopwatch.seconds.items() if i >= 0 else ():
            results[part].append(seconds)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    add = parser.add_argument
    add('config', help='config of a detector')
    add('--batch-size', type=a_count, default=16, help='images of a step')
    add('--size', type=a_count, default=320, help='side of the images, px')
    add('--steps', type=a_count, default=20, help='timed steps')
    add('--warm-up', type=a_count, default=5, help='steps before these')
    add('--threads', type=a_count, default=2, help='threads on a CPU')
    add('--device', type=a_device, default='cpu', help='cpu or one of CUDA')
    add('--json', type=a_file, help='file for the figures')
    add('--cfg-options', nargs='+', action=DictAction, help='overrides')
    args = parser.parse_args(argv)
    # It tells of every parameter, when it is optimised.
    MMLogger.get_instance('mmengine').setLevel('WARNING')
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    cfg = read_config(args.config, args.cfg_options)
    parts = measure_steps(*build(cfg, args.batch_size, args.device), args)
    medians = {part: median(seconds) for part, seconds in parts.items()}
    total = sum(medians.values())
    lines = [
        [part, f'{1e3 * time:.1f}', f'{100 * time / total:.1f} %']
        for part, time in [*medians.items(), ('step', total)]
    ]
    hardware = f'{machine_line(args.device)}; threads: {args.threads}'
    print(markdown_table(['part', 'median (ms)', 'share'], lines))
    print(f'\n{hardware}; {args.batch_size} images of {args.size} px')
    if args.json is not None:
        record = dict(vars(args), json=None, hardware=hardware, parts=parts)
        write_json(record, args.json)


if __name__ == '__main__':
    run_command_line(main)
