"""Steps that the command lines of training and testing share."""

import argparse
import gc
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import init_dist

from anchorformer_mm.apis import TASK_LIBRARIES, read_config
from anchorformer_mm.engine.config_checks import (
    check_keys,
    explain,
    unread_keys,
)
from anchorformer_mm.engine.resume import EvaluationRunner, ResumableRunner
from anchorformer_mm.utils.checkpoint import (
    admit_mmengine_checkpoints,
    require_checkpoint,
    require_pretrained_weights,
)
from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import require_datasets


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every OpenMMLab command line has."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='overrides of the config: key=value, lists as key="[a,b]"',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    parser.add_argument(
        '--skip-data-check',
        action='store_true',
        help='do not look at the data before it starts',
    )
    # torchrun sets the environment, older launchers pass the flag.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def load_config(args: argparse.Namespace, splits: Sequence[str]) -> Config:
    """Read the config of a command line; set its launcher and work folder.

    Args:
        args: Parsed arguments, with ``config`` and the common ones.
        splits: Of ``'train'``, ``'val'`` and ``'test'``, what will run.

    Raises:
        UsageError: The config, its data or its weights are not there, a key
            is wrong, or a library is missing, broken or too old.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config, args.cfg_options)
    library = task_library(cfg)
    if library is not None:
        check_environment([library])
    check_keys(cfg, splits[0])
    require_datasets(cfg, splits)
    if 'train' in splits:
        require_pretrained_weights(cfg)
        if cfg.get('load_from'):
            require_checkpoint(cfg.load_from)
    cfg.launcher = args.launcher
    default = cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    cfg.work_dir = args.work_dir or default
    return cfg


def task_library(cfg: Config) -> str | None:
    """The library of a config: its scope, or that of its model's class."""
    kind = (cfg.get('model') or {}).get('type')
    name = cfg.get('default_scope') or getattr(kind, '__module__', kind)
    library = str(name).partition('.')[0]
    return library if library in TASK_LIBRARIES else None


def build_runner(
    cfg: Config, checkpoint: dict | None = None, testing: bool = False
) -> ResumableRunner:
    """Build the runner of a config, and hand it what ``take_checkpoint`` read.

    Args:
        cfg: The config.
        checkpoint: What ``take_checkpoint`` read.
        testing: The runner is for a test alone.

    Raises:
        UsageError: The config wants another runner, or a class does not take
            an argument.
    """
    if 'runner_type' in cfg:
        raise UsageError(
            f'runner_type={cfg.runner_type!r} is not supported: leave it and '
            'strategy out, and train in several processes with --launcher'
        )
    kind = EvaluationRunner if testing else ResumableRunner
    try:
        runner = kind.from_cfg(cfg)
    except (KeyError, TypeError) as error:
        if reason := explain(error, cfg):
            raise UsageError(reason) from error
        raise
    runner.checkpoint = checkpoint
    for line in unread_keys(cfg):
        runner.logger.warning(line)
    return runner


def join_processes(cfg: Config) -> None:
    """Join the processes of a launcher, on GPUs or, with gloo, on CPUs.

    Checkpoints load with ``weights_only=True`` from now on.
    """
    # mmengine's forks would otherwise run code from a file that refuses.
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    admit_mmengine_checkpoints()
    if cfg.launcher == 'none':
        return
    if torch.cuda.is_available() or cfg.launcher == 'mpi':
        settings = (cfg.get('env_cfg') or {}).get('dist_cfg')
        init_dist(cfg.launcher, **(settings or dict(backend='nccl')))
        return
    if cfg.launcher == 'slurm':
        command = ['scontrol', 'show', 'hostname']
        command.append(os.environ['SLURM_NODELIST'])
        hosts = subprocess.check_output(command, text=True).split()
        os.environ.setdefault('MASTER_ADDR', hosts[0])
        os.environ.setdefault('MASTER_PORT', '29500')
        os.environ['RANK'] = os.environ['SLURM_PROCID']
        os.environ['LOCAL_RANK'] = os.environ['SLURM_LOCALID']
        os.environ['WORLD_SIZE'] = os.environ['SLURM_NTASKS']
    torch.distributed.init_process_group('gloo')
    # Buffers are those of the first process, which a checkpoint has.
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=True,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = wrapper | dict(
        cfg.get('model_wrapper_cfg') or {}, device_ids=None
    )


def leave_processes() -> None:
    """Wait for the other processes: one that just leaves would end them.

    The caller has let go of its runner: a distributed model would keep gloo's
    threads alive into the end of Python, which then may abort.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        gc.collect()
