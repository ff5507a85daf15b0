"""Evaluate an ONNX file with the test data and the metrics of a config."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line

if TYPE_CHECKING:
    from mmengine.config import Config


def parse_args() -> argparse.Namespace:
    # Imports what was just checked.
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config file')
    add('model', help='ONNX file; of a detector, with NMS inside')
    add('--work-dir', help='folder for logs')
    threads = 'of the runtime (default: one for each core)'
    add('--threads', type=int, default=0, help=threads)
    runtime = 'onnx: ONNX Runtime (default); openvino, in float32 or bfloat16'
    choices = ('onnx', 'openvino', 'openvino-bf16')
    add('--runtime', choices=choices, default='onnx', help=runtime)
    options = 'overrides of the config, as key=value pairs'
    add('--cfg-options', nargs='+', action=DictAction, help=options)
    check = 'do not check the data before it starts'
    add('--skip-data-check', action='store_true', help=check)
    parser.set_defaults(launcher='none', local_rank=0)
    args = parser.parse_args()
    if args.threads < 0:
        raise UsageError(f'--threads must be 0 or more, got {args.threads}')
    return args


def check_classes(cfg: 'Config', path: str, runtime: str) -> None:
    """Refuse a file that was trained for other classes than the data has.

    Raises:
        UsageError: Their numbers differ, or the file cannot be used.
    """
    # Beside this file, and what was checked before.
    import predict_onnx
    from mmengine.registry import init_default_scope

    from anchorformer_mm.apis import (
        dataset_meta,
    )

    try:
        have = predict_onnx.load_model(Path(path), runtime=runtime).classes
    except predict_onnx.InputError as error:
        raise UsageError(str(error)) from None
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    wanted = dataset_meta(cfg).get('classes')
    if wanted is not None and len(wanted) != len(have):
        raise UsageError(
            f'{path} tells {len(have)} classes apart, but the data set of '
            f'{cfg.filename} has {len(wanted)}'
        )


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv', 'onnx', 'onnxruntime'])
    args = parse_args()
    # Import what was just checked; the second registers the model.
    from anchorformer_mm.deployment import onnx_model  # noqa: F401
    from anchorformer_mm.engine import launch

    cfg = launch.load_config(args, splits=('test',))
    check_classes(cfg, args.model, args.runtime)
    cfg.model = dict(
        type='anchorformer_mm.OnnxModel',
        path=args.model,
        model=cfg.model,
        threads=args.threads,
        runtime=args.runtime,
    )
    # The file has its weights, and nothing that training hooks could watch.
    cfg.load_from, cfg.resume, cfg.custom_hooks = None, False, []
    launch.join_processes(cfg)
    runner = launch.build_runner(cfg, testing=True)
    if not args.skip_data_check:
        # Needs the library of the config.
        from anchorformer_mm.datasets import checks

        findings = checks.check_runner(runner, ['test'])
        checks.report_findings(findings, runner.logger)
    runner.test()


if __name__ == '__main__':
    run_command_line(main)
