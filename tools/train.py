"""Train a detector, a segmentor or a classifier from a config."""

import argparse
import os
from typing import TYPE_CHECKING

from anchorformer_mm.utils.environment import (
    check_environment,
    use_idle_cores,
)
from anchorformer_mm.utils.errors import UsageError, run_command_line

if TYPE_CHECKING:
    from mmengine.config import Config


def parse_arguments() -> argparse.Namespace:
    from anchorformer_mm.engine.launch import add_common_arguments

    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config file')
    text = (
        'resume from CHECKPOINT, or from the newest readable one in the work '
        'folder (from scratch if it has none)'
    )
    resume = dict(nargs='?', const='auto', metavar='CHECKPOINT')
    add('--resume', **resume, help=text)
    add('--amp', action='store_true', help='automatic mixed precision')
    text = 'scale the learning rate with the total batch size'
    add('--auto-scale-lr', action='store_true', help=text)
    add_common_arguments(parser)
    return parser.parse_args()


def enable_amp(cfg: 'Config') -> None:
    """Turn on mixed precision, which mmengine has for accelerators only."""
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            '--amp needs a GPU: mmengine trains in mixed precision on '
            'accelerators only, and this torch sees none'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.loss_scale = 'dynamic'


def enable_auto_scale_lr(cfg: 'Config') -> None:
    """Scale the learning rate, which is for the batch size of the config."""
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UsageError(
            '--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=N) '
            'in the config'
        )
    cfg.auto_scale_lr.enable = True


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    use_idle_cores()
    # Import what was just checked.
    from mmengine.dist import is_main_process

    from anchorformer_mm.analysis.summary import report_run
    from anchorformer_mm.engine import launch
    from anchorformer_mm.engine.config_checks import check_schedule
    from anchorformer_mm.engine.resume import take_checkpoint

    args = parse_arguments()
    cfg = launch.load_config(args, splits=('train', 'val'))
    if args.amp:
        enable_amp(cfg)
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg)
    launch.join_processes(cfg)
    runner = launch.build_runner(cfg, take_checkpoint(cfg, args.resume))
    started_again = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))
    if not args.skip_data_check and not started_again:
        # Needs the library of the config.
        from anchorformer_mm.datasets import checks

        splits = [s for s in ('train', 'val') if cfg.get(f'{s}_dataloader')]
        findings = checks.check_runner(runner, splits)
        checks.report_findings(findings, runner.logger)
    check_schedule(runner)
    runner.train()
    if is_main_process():
        report_run(cfg.work_dir, runner.logger)
    del runner
    launch.leave_processes()


if __name__ == '__main__':
    run_command_line(main)
