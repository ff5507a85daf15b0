"""Evaluate an ONNX file with the test data and the metrics of a config."""

import argparse
from typing import TYPE_CHECKING

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line

if TYPE_CHECKING:
    from mmengine.config import Config


def parse_args() -> argparse.Namespace:
    # Imports what was just checked.
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        'model', help='ONNX file; of a detector, with NMS inside'
    )
    parser.add_argument('--work-dir', help='folder for logs')
    parser.add_argument(
        '--threads',
        type=int,
        default=0,
        help='of ONNX Runtime (default: one for each core)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='overrides of the config, as key=value pairs',
    )
    parser.add_argument(
        '--skip-data-check',
        action='store_true',
        help='do not read the label maps of a segmentor before it starts',
    )
    parser.set_defaults(launcher='none', local_rank=0)
    args = parser.parse_args()
    if args.threads < 0:
        raise UsageError(f'--threads must be 0 or more, got {args.threads}')
    return args


def check_classes(cfg: 'Config', path: str) -> None:
    """Refuse a file that was trained for other classes than the data has.

    Raises:
        UsageError: Their numbers differ, or its metadata cannot be.
    """
    # Import what was checked before; the first is beside this file.
    import predict_onnx
    from mmengine.registry import init_default_scope

    from anchorformer_mm.apis import (
        dataset_meta,
    )
    from anchorformer_mm.deployment.onnx_model import (
        check_outputs,
        open_session,
    )

    session = open_session(path)
    check_outputs(path, session)
    metadata = session.get_modelmeta().custom_metadata_map
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    wanted = dataset_meta(cfg).get('classes')
    try:
        have = predict_onnx.read_list(metadata, 'classes')
        steps = predict_onnx.read_list(metadata, 'preprocess')
        predict_onnx.check_steps(steps)
    except ValueError as error:
        raise UsageError(f'metadata of {path}: {error}') from None
    if wanted is not None and len(wanted) != len(have):
        raise UsageError(
            f'{path} tells {len(have)} classes apart, but the data set of '
            f'{cfg.filename} has {len(wanted)}'
        )


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv', 'onnx', 'onnxruntime'])
    args = parse_args()
    # Imports what was just checked.
    from anchorformer_mm.engine import launch

    cfg = launch.load_config(args, splits=('test',))
    check_classes(cfg, args.model)
    cfg.model = dict(
        type='anchorformer_mm.OnnxModel',
        path=args.model,
        model=cfg.model,
        threads=args.threads,
    )
    # The file has its weights, and nothing that training hooks could watch.
    cfg.load_from, cfg.resume, cfg.custom_hooks = None, False, []
    launch.run(cfg, 'test')


if __name__ == '__main__':
    run_command_line(main)
