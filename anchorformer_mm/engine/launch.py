"""From a command line to mmengine's runner, for train and test alike."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import init_dist
from PIL import EpsImagePlugin

from anchorformer_mm.engine.plain_norm_runner import PlainNormRunner
from anchorformer_mm.engine.safe_training import build_runner, train_safely
from anchorformer_mm.utils.checkpoint import (
    admit_mmengine_checkpoints,
    require_checkpoint,
)
from anchorformer_mm.utils.dataset_paths import require_datasets
from anchorformer_mm.utils.environment import LIBRARIES, check_environment
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.pretrained_weights import (
    require_pretrained_weights,
)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every OpenMMLab command line has."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='overrides of the config, as key=value pairs; lists as '
        'key="[a,b]" without white space',
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
        help='do not check annotations, label maps and a sample of the images '
        'before it starts',
    )
    # torchrun sets the environment, older launchers pass the flag.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def load_config(args: argparse.Namespace, splits: Sequence[str]) -> Config:
    """Read the config of a command line and check what it needs.

    Args:
        args: Parsed arguments, with ``config`` and the common ones.
        splits: Of ``'train'``, ``'val'`` and ``'test'``, what will run; their
            data must be there.

    Returns:
        Config: With ``launcher`` and ``work_dir`` set.

    Raises:
        UsageError: The config or its data is not there, or a library is
            missing, broken or too old; or the data is faulty, or does not fit
            the model.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    # Pillow would start Ghostscript for an image that is EPS by content.
    EpsImagePlugin.gs_binary = False
    if not Path(args.config).is_file():
        raise UsageError(f'config not found: {args.config}')
    try:
        cfg = Config.fromfile(args.config)
    except ModuleNotFoundError as error:
        # mmengine's words start with the name, and advise the originals.
        check_environment([n for n in LIBRARIES if n in str(error).split()])
        raise
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    scope = cfg.get('default_scope')
    if scope in ('mmdet', 'mmseg', 'mmpretrain'):
        check_environment([scope])
    require_datasets(cfg, splits)
    if 'train' in splits:
        require_pretrained_weights(cfg)
        if cfg.get('load_from') and 'runner_type' not in cfg:
            require_checkpoint(cfg.load_from)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    return cfg


def enable_amp(cfg: Config) -> None:
    """Turn on mixed precision.

    Raises:
        UsageError: There is no accelerator; mmengine's mixed precision
            needs one.
    """
    if not torch.cuda.is_available():
        raise UsageError(
            '--amp needs a GPU: mmengine trains in mixed precision on '
            'accelerators only, and this torch sees none'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.loss_scale = 'dynamic'


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate with the total batch size.

    Raises:
        UsageError: The config does not say for which batch its rate is.
    """
    auto = cfg.get('auto_scale_lr') or {}
    if 'base_batch_size' not in auto:
        raise UsageError(
            '--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=N) '
            'in the config'
        )
    cfg.auto_scale_lr.enable = True


def run(cfg: Config, task: str) -> None:
    """Build the runner of a config and train or test with it.

    Checkpoints load with ``weights_only=True``. Trainings are made safe, see
    :mod:`anchorformer_mm.engine.safe_training`.

    Args:
        cfg: From :func:`load_config`; a training changes it.
        task: ``'train'`` or ``'test'``.

    Raises:
        UsageError: A training cannot go on, for a reason that it names.
        SystemExit: A training was interrupted, and has saved a checkpoint.
    """
    # mmengine's forks would otherwise run code from a file that refuses.
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    admit_mmengine_checkpoints()
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        _distribute_on_cpu(cfg)
    elif cfg.launcher != 'none' and 'runner_type' not in cfg:
        # As mmengine would, but before they choose what to resume from.
        settings = (cfg.get('env_cfg') or {}).get('dist_cfg')
        init_dist(cfg.launcher, **(settings or dict(backend='nccl')))
    if task == 'train':
        train_safely(cfg)
    else:
        getattr(build_runner(cfg, PlainNormRunner), task)()
    if torch.distributed.is_initialized():
        # A process that just leaves takes the others down with it.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _distribute_on_cpu(cfg: Config) -> None:
    """Join the processes of torchrun without GPUs, which mmengine cannot.

    It would choose a GPU for each process, and hand its number on to torch's
    wrapper.
    """
    torch.distributed.init_process_group('gloo')
    wrapper = dict(type='MMDistributedDataParallel', broadcast_buffers=False)
    cfg.model_wrapper_cfg = wrapper | dict(
        cfg.get('model_wrapper_cfg') or {}, device_ids=None
    )
