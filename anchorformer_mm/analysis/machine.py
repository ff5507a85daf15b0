"""What figures were measured on."""

import platform
from pathlib import Path

import torch


def machine_line(device: str = 'cpu') -> str:
    """Name the processor and the version of torch.

    Args:
        device: ``'cpu'``, or one of CUDA.
    """
    if torch.device(device).type == 'cpu':
        name = _cpu_name()
    else:
        name = torch.cuda.get_device_name(device)
    return f'{name}; torch {torch.__version__}'


def _cpu_name() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    for line in lines:
        if line.startswith('model name'):
            return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()
