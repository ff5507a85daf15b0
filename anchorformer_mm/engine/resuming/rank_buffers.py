"""What processes that train together do not have in common."""

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import Tensor, nn


def get_rank_buffers(runner: Runner) -> list[dict[str, Tensor]]:
    """Gather the buffers in which a process differs from the first one.

    A checkpoint has the first one's alone, and batch norms that are not
    synchronised have running statistics of their own everywhere.

    Returns:
        list[dict[str, Tensor]]: For each process, by name, on the CPU; in all
        processes. Empty where one trains alone.
    """
    if get_world_size() == 1:
        return []
    own = {
        name: buffer.detach().cpu().clone()
        for name, buffer in _buffers(runner).items()
    }
    first, *others = all_gather_object(own)
    return [
        {},
        *(
            {k: v for k, v in one.items() if not torch.equal(v, first[k])}
            for one in others
        ),
    ]


def set_rank_buffers(runner: Runner, buffers: list[dict[str, Tensor]]) -> None:
    """Give this process the buffers that were gathered from it."""
    if get_rank() >= len(buffers):
        return
    current = _buffers(runner)
    for name, buffer in buffers[get_rank()].items():
        current[name].copy_(buffer)


def _buffers(runner: Runner) -> dict[str, Tensor]:
    modules = dict(model=runner.model)
    for index, hook in enumerate(runner.hooks):
        if isinstance(hook, EMAHook):
            modules[f'average{index}'] = hook.ema_model
    return {
        f'{part}.{name}': buffer
        for part, module in modules.items()
        for name, buffer in _saved_buffers(module).items()
    }


def _saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    saved = module.state_dict(keep_vars=True)
    return {n: b for n, b in module.named_buffers() if n in saved}
